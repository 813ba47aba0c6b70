//! `fieldstream init`, and the certificates and tokens that `up` makes for itself.

use crate::config::{DEFAULT_FILE, commented};
use crate::exit::Failure;
use crate::output;
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names every certificate is for.
const LOCAL_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Years a certificate made here is good for: longer than the devices that carry the CA file.
const YEARS: i32 = 20;

/// The three files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// What clients trust.
    pub(crate) ca: PathBuf,
    /// The server's certificate chain.
    pub(crate) certificate: PathBuf,
    /// The server's key.
    pub(crate) key: PathBuf,
}

impl TlsFiles {
    /// Their places in a folder.
    pub(crate) fn in_directory(directory: &Path) -> TlsFiles {
        TlsFiles {
            ca: directory.join("ca.pem"),
            certificate: directory.join("server.pem"),
            key: directory.join("server.key"),
        }
    }
}

/// A CA and a server certificate, as PEM.
pub(crate) struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

/// Makes a CA and a server certificate for this machine and further host names. The CA's key is
/// thrown away: nobody can ever sign another certificate in its name.
///
/// # Errors
/// If a name cannot be in a certificate.
pub(crate) fn certificates(hosts: &[String], now: SystemTime) -> Result<Certificates, rcgen::Error> {
    let year = 1970 + now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() / 31_556_952) as i32;
    let not_after = rcgen::date_time_ymd(year + YEARS, 1, 1);

    let mut ca = CertificateParams::new(Vec::new())?;
    ca.distinguished_name.push(DnType::CommonName, "Fieldstream CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.not_after = not_after;
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;

    let mut names: Vec<String> = LOCAL_NAMES.iter().map(|name| (*name).to_owned()).collect();
    names.extend(hosts.iter().filter(|host| !LOCAL_NAMES.contains(&host.as_str())).cloned());
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name.push(DnType::CommonName, "Fieldstream");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.use_authority_key_identifier_extension = true;
    server.not_after = not_after;
    let key = KeyPair::generate()?;
    let certificate = server.signed_by(&key, &ca)?;
    Ok(Certificates { ca: ca.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new token: 43 characters, 258 bits.
fn token() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = rand::rng();
    (0..43).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// A token file with two generated tokens: one that may do everything and one for devices.
pub(crate) fn tokens_file() -> String {
    format!(
        r#"# Tokens and what they allow. Read at start.
#
# client: the client ids a token is for; * stands for any characters.
# read, write: prefixes of document ids; "" is every document. What is not granted is refused.
# admin: may use administration; says nothing about documents.
# Connections from this machine need no token unless gateway.require_token_on_loopback is true.

[[token]]
token = "{}"
client = "*"
read = [""]
write = [""]
admin = true

[[token]]
token = "{}"
client = "*"
read = ["devices/", "demo/"]
write = ["devices/", "demo/"]
admin = false
"#,
        token(),
        token()
    )
}

/// Certificates of a folder, made if they are not there.
///
/// # Errors
/// If some but not all are there, or files cannot be written.
pub(crate) fn ensure_tls(directory: &Path, hosts: &[String]) -> Result<TlsFiles, Failure> {
    let files = TlsFiles::in_directory(directory);
    let all = [&files.ca, &files.certificate, &files.key];
    let missing: Vec<_> = all.iter().filter(|file| !file.exists()).collect();
    match missing.as_slice() {
        [] => Ok(files),
        [_, _, _] => {
            write_tls(directory, hosts, false)?;
            Ok(files)
        }
        [first, ..] => {
            Err(Failure::failed(format_args!("{} is missing, but other files of it are there", first.display()))
                .help("put it back, or remove the others so that all are made anew"))
        }
    }
}

/// The token file, made if it is not there.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn ensure_tokens(file: &Path) -> Result<(), Failure> {
    if file.exists() { Ok(()) } else { write_new(file, &tokens_file(), 0o600, false) }
}

fn write_tls(directory: &Path, hosts: &[String], force: bool) -> Result<(), Failure> {
    let made = certificates(hosts, SystemTime::now())
        .map_err(|error| Failure::usage(format_args!("cannot make a certificate for {}: {error}", hosts.join(", "))))?;
    let files = TlsFiles::in_directory(directory);
    create_directory(directory)?;
    write_new(&files.key, &made.key, 0o600, force)?;
    write_new(&files.certificate, &made.certificate, 0o644, force)?;
    write_new(&files.ca, &made.ca, 0o644, force)
}

/// Creates a folder and what leads to it.
///
/// # Errors
/// If that is not possible.
pub(crate) fn create_directory(directory: &Path) -> Result<(), Failure> {
    fs::create_dir_all(directory)
        .map_err(|error| Failure::failed(format_args!("cannot create the folder {}: {error}", directory.display())))
}

fn write_new(file: &Path, text: &str, mode: u32, force: bool) -> Result<(), Failure> {
    let refused = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::failed(format_args!("{} exists already", file.display()))
            .help("--force replaces it; whoever trusts the old certificate or token is then refused"),
        _ => Failure::failed(format_args!("cannot write {}: {error}", file.display())),
    };
    if force && file.exists() {
        fs::remove_file(file).map_err(refused)?;
    }
    let mut created = OpenOptions::new().write(true).create_new(true).mode(mode).open(file).map_err(refused)?;
    created.write_all(text.as_bytes()).and_then(|()| created.sync_all()).map_err(refused)
}

/// The command line of `init`.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// The folder to write into
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// The same, spelled as with `up`
    #[arg(long, value_name = "DIR", conflicts_with = "directory")]
    data: Option<PathBuf>,
    /// A further host name or address the certificate is for (repeatable)
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

/// Writes configuration, certificates and tokens.
///
/// # Errors
/// If a file exists and `--force` was not given, or cannot be written.
pub(crate) fn run(args: &InitArgs) -> Result<(), Failure> {
    let directory = args.data.as_ref().unwrap_or(&args.directory);
    create_directory(directory)?;
    // Absolute, so that the file works from any folder.
    let directory = directory
        .canonicalize()
        .map_err(|error| Failure::failed(format_args!("cannot use the folder {}: {error}", directory.display())))?;
    let config = directory.join(DEFAULT_FILE);
    let tokens = directory.join("tokens.toml");
    let tls = TlsFiles::in_directory(&directory.join("tls"));
    let all = [&config, &tokens, &tls.ca, &tls.certificate, &tls.key];
    // All or nothing: a folder half written over would be worse than a refusal.
    let there: Vec<String> = all.iter().filter(|f| f.exists()).map(|f| f.display().to_string()).collect();
    if !args.force && !there.is_empty() {
        return Err(Failure::failed(format_args!("already there: {}", there.join(", ")))
            .help("--force replaces them; whoever trusts the old certificate or tokens is then refused"));
    }
    write_tls(&directory.join("tls"), &args.hosts, args.force)?;
    write_new(&tokens, &tokens_file(), 0o600, args.force)?;
    let shown = |path: &Path| path.display().to_string();
    let instead = BTreeMap::from([
        ("gateway.certificate_file", shown(&tls.certificate)),
        ("gateway.key_file", shown(&tls.key)),
        ("gateway.tokens_file", shown(&tokens)),
        ("up.data", shown(&directory)),
    ]);
    write_new(&config, &commented::file(&instead), 0o644, args.force)?;
    for file in all {
        output::line(&shown(file))?;
    }
    eprintln!("next: fieldstream up --config {}", shown(&config));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    fn init(directory: &Path, force: bool) -> Result<(), Failure> {
        let hosts = vec!["gateway.example".to_owned(), "192.0.2.7".to_owned()];
        run(&InitArgs { directory: directory.to_owned(), data: None, hosts, force })
    }

    #[test]
    fn certificates_load_and_are_for_the_names_given() {
        let made = certificates(&["gateway.example".to_owned(), "192.0.2.7".to_owned()], SystemTime::now()).unwrap();
        let certificate = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(made.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(made.ca.as_bytes()).unwrap()).unwrap();
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let check = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            use rustls::client::danger::ServerCertVerifier as _;
            verifier.verify_server_cert(&certificate, &[], &name, &[], rustls::pki_types::UnixTime::now())
        };
        for name in ["localhost", "127.0.0.1", "::1", "gateway.example", "192.0.2.7"] {
            check(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert!(check("other.example").is_err());
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (a, b) = (token(), token());
        assert_eq!(a.len(), 43);
        assert_ne!(a, b);
        let file: toml::Table = tokens_file().parse().unwrap();
        assert_eq!(file["token"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn init_writes_what_up_can_use_and_replaces_nothing_unasked() {
        let directory = tempfile::tempdir().unwrap();
        init(directory.path(), false).unwrap();
        let file = directory.path().join(DEFAULT_FILE);
        let inputs = crate::config::Inputs { file: Some(file), ..Default::default() };
        let (settings, _) = crate::config::load(&inputs).unwrap();
        let root = directory.path().canonicalize().unwrap();
        assert_eq!(settings.gateway.tokens_file, Some(root.join("tokens.toml")));
        for (name, mode) in [("tokens.toml", 0o600), ("tls/server.key", 0o600)] {
            assert_eq!(fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
        }
        let before = fs::read(root.join("tokens.toml")).unwrap();
        let refused = init(directory.path(), false).unwrap_err();
        assert!(refused.message.contains("tokens.toml"), "{refused:?}");
        assert_eq!(fs::read(root.join("tokens.toml")).unwrap(), before);
        init(directory.path(), true).unwrap();
        assert_ne!(fs::read(root.join("tokens.toml")).unwrap(), before);
    }
}
