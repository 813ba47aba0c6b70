//! What configuration accepts, and what it says of mistakes.

use super::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

struct Given<'a> {
    file: &'a str,
    environment: &'a [(&'a str, &'a str)],
    flags: Flags,
}

fn read(given: Given<'_>) -> Result<(Settings, Layers), Vec<String>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("some.toml");
    std::fs::write(&path, given.file).unwrap();
    let environment = given.environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let inputs = Inputs { file: Some(path), environment, flags: given.flags };
    let layers = Layers::read(&inputs)?;
    Ok((Settings::read(&layers)?, layers))
}

fn problems(file: &str, environment: &[(&str, &str)], flags: Flags) -> Vec<String> {
    read(Given { file, environment, flags }).expect_err("a problem")
}

#[test]
fn the_commented_file_equals_the_defaults() {
    let empty = read(Given { file: "", environment: &[], flags: Flags::default() }).unwrap().0;
    let file = commented::file(&BTreeMap::new());
    let mut full = read(Given { file: &file, environment: &[], flags: Flags::default() }).unwrap().0;
    assert!(full.nats.lanes_given, "the file names every key");
    full.nats.lanes_given = false;
    assert_eq!(full, empty);
    for key in keys::KEYS {
        key.form.check(key.default).unwrap_or_else(|e| panic!("{}: {e}", key.name));
        assert!(file.contains(&format!("\n{} = ", key.parts().1)), "{}", key.name);
        assert!(keys::SECTIONS.iter().any(|(s, _)| *s == key.parts().0), "{}", key.name);
    }
}

#[test]
fn flags_go_before_the_environment_and_that_before_the_file() {
    let file = "[gateway]\nlisten = \"127.0.0.1:1\"\ntcp = \"127.0.0.1:2\"\nstored_copies = 2\n";
    let environment = [("FIELDSTREAM_GATEWAY__LISTEN", "127.0.0.1:3"), ("FIELDSTREAM_GATEWAY__TCP", "127.0.0.1:4")];
    let flags = Flags::default().set("gateway.listen", "--listen", Some("127.0.0.1:5"));
    let (settings, layers) = read(Given { file, environment: &environment, flags }).unwrap();
    assert_eq!(settings.gateway.listen.port(), 5);
    assert_eq!(settings.gateway.tcp.map(|a| a.port()), Some(4));
    assert_eq!(settings.gateway.stored_copies, 2);
    assert_eq!(layers.origin("gateway.listen").to_string(), "flag --listen");
    assert_eq!(layers.origin("gateway.tcp").to_string(), "variable FIELDSTREAM_GATEWAY__TCP");
    assert!(layers.origin("gateway.stored_copies").to_string().ends_with("some.toml"));
    assert_eq!(*layers.origin("log.level"), Origin::Default);
    assert!(commented::shown(&layers, true, false).contains("# variable FIELDSTREAM_GATEWAY__TCP"));
}

type Mistake<'a> = (&'a str, &'a [(&'a str, &'a str)], Flags, &'a [&'a str]);

/// One mistake each: the source, and what the one message must say.
#[test]
fn a_message_says_value_key_and_place_and_what_was_meant() {
    let none = Flags::default;
    let flag = |key, name, value: &str| Flags::default().set(key, name, Some(value));
    let cases: &[Mistake<'_>] = &[
        ("[gateway]\nlisten = \"7443\"\n", &[], none(), &["\"7443\"", "`gateway.listen`", "some.toml", "address"]),
        (
            "[gateway]\nlisen = \"x\"\n",
            &[],
            none(),
            &["`gateway.lisen`", "some.toml", "did you mean `gateway.listen`?"],
        ),
        ("[gatway]\nlisten = \"x\"\n", &[], none(), &["`gatway`", "some.toml", "`gateway.listen`"]),
        ("[storer]\nlisten = \"x\"\n", &[], none(), &["`storer.listen`", "`gateway.listen`"]),
        ("listen = \"x\"\n", &[], none(), &["unknown key `listen`", "some.toml"]),
        ("gateway = 5\n", &[], none(), &["`gateway` is a section", "[gateway]"]),
        ("[gateway]\nlisten = [\"a\"]\n", &[], none(), &["`gateway.listen` must be a single value", "some.toml"]),
        ("[storer]\nmap_bytes = \"64 MegaByte\"\n", &[], none(), &["\"64 MegaByte\"", "`storer.map_bytes`", "64MiB"]),
        ("[storer]\ncommit_floor = 10\n", &[], none(), &["\"10\"", "`storer.commit_floor`", "30s"]),
        ("[up]\nprofile = \"fats\"\n", &[], none(), &["\"fats\"", "`up.profile`", "did you mean fast?"]),
        ("[gateway\n", &[], none(), &["some.toml"]),
        (
            "",
            &[("FIELDSTREAM_NATS__LANES", "many")],
            none(),
            &["\"many\"", "`nats.lanes`", "variable FIELDSTREAM_NATS__LANES", "1 to 64"],
        ),
        (
            "",
            &[("FIELDSTREAM_GATEWAY__LISEN", "x")],
            none(),
            &["FIELDSTREAM_GATEWAY__LISEN", "did you mean FIELDSTREAM_GATEWAY__LISTEN?"],
        ),
        (
            "",
            &[("FIELDSTREAM_GATEWAY_LISTEN", "x")],
            none(),
            &["FIELDSTREAM_GATEWAY_LISTEN", "did you mean FIELDSTREAM_GATEWAY__LISTEN?"],
        ),
        ("", &[], flag("up.profile", "--profile", "slow"), &["\"slow\"", "`up.profile`", "flag --profile"]),
        (
            "[gateway]\ncertificate_file = \"/dev/null\"\n",
            &[],
            none(),
            &["`gateway.certificate_file`", "some.toml", "gateway.key_file"],
        ),
        (
            "",
            &[("FIELDSTREAM_GATEWAY__TOKENS_FILE", "/nowhere/tokens.toml")],
            none(),
            &["`gateway.tokens_file`", "FIELDSTREAM_GATEWAY__TOKENS_FILE", "/nowhere/tokens.toml"],
        ),
    ];
    for (file, environment, flags, parts) in cases {
        let got = problems(file, environment, flags.clone());
        assert_eq!(got.len(), 1, "{file}{environment:?}: {got:?}");
        for part in *parts {
            assert!(got[0].contains(part), "{part} is missing in: {}", got[0]);
        }
    }
}

#[test]
fn all_problems_come_at_once() {
    let file = "[gateway]\nlisten = \"x\"\nlisen = \"y\"\n[storer]\nmap_bytes = \"big\"\n[colour]\na = 1\n";
    let environment = [("FIELDSTREAM_NATS__LANES", "0"), ("FIELDSTREAM_UP__DEMO", "-1")];
    let flags = Flags::default().set("storer.commit_floor", "--commit-floor", Some("soon"));
    let got = problems(file, &environment, flags);
    assert_eq!(got.len(), 7, "{got:#?}");
    let failure = load(&Inputs { file: Some(PathBuf::from("/nowhere.toml")), ..Inputs::default() }).unwrap_err();
    assert_eq!(failure.exit, Some(Exit::Configuration));
    assert!(failure.message.contains("/nowhere.toml") && failure.message.contains("--config"), "{failure:?}");
}

#[test]
fn variables_of_other_purposes_are_left_alone() {
    let environment = [
        ("FIELDSTREAM_SERVER", "tcp://127.0.0.1:1"),
        ("FIELDSTREAM_TOKEN", "t"),
        ("FIELDSTREAM_NATS_SERVER", "/usr/bin/nats-server"),
        ("FIELDSTREAM_TEST_PYTHON", "python3"),
        ("OTHER", "x"),
    ];
    assert!(read(Given { file: "", environment: &environment, flags: Flags::default() }).is_ok());
}

#[test]
fn passwords_are_not_shown() {
    assert_eq!(commented::hide_password("nats://u:p@h:4222"), "nats://u:***@h:4222");
    assert_eq!(commented::hide_password("nats://token@h:4222"), "nats://:***@h:4222");
    assert_eq!(commented::hide_password("nats://h:4222"), "nats://h:4222");
}
