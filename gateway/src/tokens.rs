//! Who may connect, and what they may read and write: deny by default.

use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldstream_shared::limits::TOKEN_BYTES_MAX;

/// A pattern in which `*` stands for any run of characters, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(Box<str>);

impl Pattern {
    fn new(pattern: &str) -> Pattern {
        Pattern(pattern.into())
    }

    /// The part before the first `*`.
    fn literal(&self) -> &str {
        self.0.split('*').next().unwrap_or_default()
    }

    /// Whether the pattern matches all of `text`, or only its beginning. Linear: a failed attempt
    /// goes back to the last `*` only.
    fn matches(&self, text: &str, beginning_only: bool) -> bool {
        let (pattern, text) = (self.0.as_bytes(), text.as_bytes());
        let (mut p, mut t) = (0, 0);
        let mut retry: Option<(usize, usize)> = None;
        loop {
            if p == pattern.len() && (beginning_only || t == text.len()) {
                return true;
            }
            if pattern.get(p) == Some(&b'*') {
                p += 1;
                retry = Some((p, t));
            } else if p < pattern.len() && t < text.len() && pattern[p] == text[t] {
                (p, t) = (p + 1, t + 1);
            } else {
                match retry {
                    Some((after_star, from)) if from < text.len() => {
                        retry = Some((after_star, from + 1));
                        (p, t) = (after_star, from + 1);
                    }
                    _ => return false,
                }
            }
        }
    }
}

/// What a client may do. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rights(Arc<Grants>);

#[derive(Debug, Default)]
struct Grants {
    read: Vec<Pattern>,
    write: Vec<Pattern>,
    admin: bool,
}

impl Rights {
    pub(crate) fn everything() -> Rights {
        let all = || vec![Pattern::new("")];
        Rights(Arc::new(Grants { read: all(), write: all(), admin: true }))
    }

    /// Everything, or everything but writing.
    #[cfg(feature = "cores")]
    pub(crate) fn all_or_read(may_write: bool) -> Rights {
        let all = Rights::everything();
        let only_reads = || Rights(Arc::new(Grants { read: vec![Pattern::new("")], ..Grants::default() }));
        if may_write { all } else { only_reads() }
    }

    #[cfg(test)]
    pub(crate) fn reads(patterns: &[&str]) -> Rights {
        Rights(Arc::new(Grants { read: patterns.iter().map(|p| Pattern::new(p)).collect(), ..Grants::default() }))
    }

    /// Whether the document may be read: watched, got, listed.
    pub fn may_read(&self, document: &str) -> bool {
        self.0.read.iter().any(|p| p.matches(document, true))
    }

    /// Whether instructions on the document are allowed.
    pub fn may_write(&self, document: &str) -> bool {
        self.0.write.iter().any(|p| p.matches(document, true))
    }

    /// Whether administration is allowed. Says nothing about documents.
    pub fn is_admin(&self) -> bool {
        self.0.admin
    }

    /// The prefixes under which documents below `prefix` may be found that may be read: in order,
    /// none inside another. What is found there still has to pass [`Rights::may_read`].
    pub fn readable_below(&self, prefix: &str) -> Vec<String> {
        let mut prefixes: Vec<String> = Vec::new();
        let mut found: Vec<&str> = (self.0.read.iter().map(Pattern::literal))
            .filter_map(|literal| {
                if literal.starts_with(prefix) { Some(literal) } else { prefix.starts_with(literal).then_some(prefix) }
            })
            .collect();
        found.sort_unstable();
        for prefix in found {
            if !prefixes.last().is_some_and(|last| prefix.starts_with(last.as_str())) {
                prefixes.push(prefix.to_owned());
            }
        }
        prefixes
    }
}

/// Decides about clients when they connect.
#[derive(Clone)]
pub struct TokenPolicy {
    entries: Arc<[Entry]>,
    loopback_open: bool,
}

impl std::fmt::Debug for TokenPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenPolicy")
            .field("tokens", &self.entries.len())
            .field("loopback_open", &self.loopback_open)
            .finish()
    }
}

struct Entry {
    token: Box<str>,
    client: Pattern,
    rights: Rights,
}

/// The token is missing, unknown, or not for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is missing, unknown, or not for this client id")]
pub struct Unauthorized;

/// Why a token file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("token file {path}: cannot be read; `fieldstream init` makes one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML of the documented form.
    #[error("token file {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<FileEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEntry {
    token: String,
    client: String,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    admin: bool,
}

impl TokenPolicy {
    /// Without a file: connections from loopback may do everything, all others nothing.
    pub fn loopback_open() -> TokenPolicy {
        TokenPolicy { entries: Arc::new([]), loopback_open: true }
    }

    /// Reads a token file. Connections from loopback need no token unless `require_on_loopback`.
    ///
    /// # Errors
    /// [`TokenFileError`] says which file, which entry and what to do.
    pub fn from_file(path: &Path, require_on_loopback: bool) -> Result<TokenPolicy, TokenFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Unreadable { path: path.to_owned(), source })?;
        TokenPolicy::parse(&text, require_on_loopback)
            .map_err(|reason| TokenFileError::Malformed { path: path.to_owned(), reason })
    }

    fn parse(text: &str, require_on_loopback: bool) -> Result<TokenPolicy, String> {
        // The parser's full message quotes the line it stopped at, and that may hold a token.
        let file: File = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            format!("line {line}: {}", error.message())
        })?;
        let mut entries = Vec::with_capacity(file.token.len());
        for (i, entry) in file.token.into_iter().enumerate() {
            let nth = i + 1;
            match entry.token.len() {
                0 => return Err(format!("entry {nth}: the token is empty; nobody could be told from nobody")),
                1..=TOKEN_BYTES_MAX => {}
                bytes => return Err(format!("entry {nth}: the token has {bytes} bytes, more than {TOKEN_BYTES_MAX}")),
            }
            if entry.client.is_empty() {
                return Err(format!("entry {nth}: `client` is empty; write \"*\" for every client"));
            }
            let patterns = |list: Vec<String>| list.iter().map(|p| Pattern::new(p)).collect();
            let grants = Grants { read: patterns(entry.read), write: patterns(entry.write), admin: entry.admin };
            entries.push(Entry {
                token: entry.token.into(),
                client: Pattern::new(&entry.client),
                rights: Rights(Arc::new(grants)),
            });
        }
        Ok(TokenPolicy { entries: entries.into(), loopback_open: !require_on_loopback })
    }

    /// Decides about a client. A token that is given must be right, also from loopback, unless
    /// there are no tokens at all.
    ///
    /// # Errors
    /// [`Unauthorized`].
    pub fn authorize(&self, from_loopback: bool, client: &str, token: Option<&str>) -> Result<Rights, Unauthorized> {
        let open = self.loopback_open && from_loopback;
        let Some(token) = token.filter(|_| !(open && self.entries.is_empty())) else {
            return if open { Ok(Rights::everything()) } else { Err(Unauthorized) };
        };
        let mut found = None;
        // All entries are compared in full, so that the time taken tells nothing about tokens.
        for entry in self.entries.iter() {
            if same(entry.token.as_bytes(), token.as_bytes()) && entry.client.matches(client, false) {
                found = found.or(Some(&entry.rights));
            }
        }
        found.cloned().ok_or(Unauthorized)
    }
}

/// Compares without stopping at the first difference.
fn same(ours: &[u8], theirs: &[u8]) -> bool {
    let difference = (0..theirs.len()).fold(ours.len() ^ theirs.len(), |difference, i| {
        difference | usize::from(ours.get(i).copied().unwrap_or_default() ^ theirs[i])
    });
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [[token]]
        token = "alpha"
        client = "boiler-*"
        read = ["site7/", "public/*/status"]
        write = ["site7/"]

        [[token]]
        token = "root"
        client = "*"
        read = [""]
        write = [""]
        admin = true

        [[token]]
        token = "nothing"
        client = "guest"
    "#;

    #[test]
    fn grants_are_by_prefix_and_deny_is_the_default() {
        let policy = TokenPolicy::parse(FILE, true).unwrap();
        let rights = policy.authorize(true, "boiler-9", Some("alpha")).unwrap();
        assert!(rights.may_read("site7/a") && rights.may_write("site7/a") && !rights.is_admin());
        assert!(rights.may_read("public/x/y/status/now") && !rights.may_write("public/x/status"));
        assert!(!rights.may_read("site70") && !rights.may_read("site8/a") && !rights.may_read("public/x"));
        let guest = policy.authorize(false, "guest", Some("nothing")).unwrap();
        assert!(!guest.may_read("a") && !guest.may_write("a"));
        assert!(policy.authorize(false, "anyone", Some("root")).unwrap().is_admin());
    }

    #[test]
    fn tokens_are_checked_unless_loopback_needs_none() {
        let strict = TokenPolicy::parse(FILE, true).unwrap();
        let lax = TokenPolicy::parse(FILE, false).unwrap();
        for policy in [&strict, &lax] {
            for from_loopback in [true, false] {
                assert!(policy.authorize(from_loopback, "boiler-1", Some("alphA")).is_err());
                assert!(policy.authorize(from_loopback, "boiler-1", Some("alph")).is_err());
                assert!(policy.authorize(from_loopback, "boiler-1", Some("alphaa")).is_err());
                assert!(policy.authorize(from_loopback, "pump-1", Some("alpha")).is_err(), "another client's");
            }
            assert!(policy.authorize(false, "boiler-1", None).is_err());
        }
        assert!(strict.authorize(true, "x", None).is_err());
        assert!(lax.authorize(true, "x", None).unwrap().may_write("anything"));
        let open = TokenPolicy::loopback_open();
        assert!(open.authorize(true, "x", Some("whatever")).is_ok());
        assert!(open.authorize(false, "x", Some("whatever")).is_err());
        let empty = TokenPolicy::parse("", true).unwrap();
        assert!(empty.authorize(true, "x", Some("")).is_err(), "an empty file admits nobody");
    }

    #[test]
    fn listings_are_narrowed_to_what_may_be_read() {
        let rights = TokenPolicy::parse(FILE, true).unwrap().authorize(true, "boiler-1", Some("alpha")).unwrap();
        assert_eq!(rights.readable_below(""), ["public/", "site7/"]);
        assert_eq!(rights.readable_below("site7/a"), ["site7/a"]);
        assert_eq!(rights.readable_below("site8"), Vec::<String>::new());
        assert_eq!(Rights::everything().readable_below("x"), ["x"]);
    }

    #[test]
    fn mistakes_in_the_file_are_named_without_showing_tokens() {
        for (text, expect) in [
            ("[[token]]\ntoken = \"\"\nclient = \"a\"", "entry 1: the token is empty"),
            ("[[token]]\ntoken = \"x\"\nclient = \"\"", "`client` is empty"),
            ("[[token]]\ntoken = \"x\"\nclient = \"a\"\nwirte = []", "line 4"),
            ("[[token]]\ntoken = \"secret", "line 2"),
        ] {
            let message = TokenPolicy::parse(text, true).unwrap_err();
            assert!(message.contains(expect), "{message}");
            assert!(!message.contains("secret"), "{message}");
        }
        let missing = TokenPolicy::from_file(Path::new("/nowhere/tokens.toml"), true).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/tokens.toml"));
    }

    #[test]
    fn patterns_with_many_stars_stay_cheap() {
        let pattern = Pattern::new(&"a*".repeat(100));
        assert!(!pattern.matches(&"b".repeat(200), false));
        assert!(Pattern::new("*a*b").matches("xxaxxab", false));
        assert!(!Pattern::new("*a*b").matches("xxaxxabc", false));
        assert!(Pattern::new("*a*b").matches("xxaxxabc", true));
    }
}
