//! Command lines that are taken, and those that are not.

use super::*;
use clap::CommandFactory as _;

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command)
}

#[test]
fn the_definition_is_consistent_and_help_names_the_exit_codes() {
    Cli::command().debug_assert();
    let help = Cli::command().render_help().to_string();
    for code in ["0 ", "1 ", "2 ", "69", "75", "78"] {
        assert!(help.contains(&format!("\n  {code}")), "{code} in {help}");
    }
}

#[test]
fn commands_take_what_people_type() {
    for line in [
        "fieldstream up --data d --listen 0.0.0.0:0 --demo 3 --ready-file r --profile fast --lanes 2 --tcp off",
        "fieldstream gateway --nats nats://a:1 --cert c --key k --tokens t --stored-copies 2",
        "fieldstream processor --nats nats://a:1 --partitions 0-127 --create-streams --lanes 2",
        "fieldstream storer --nats nats://a:1 --data d",
        "fieldstream put d - --server tcp://h:1",
        "fieldstream put d -x --server tcp://h:1",
        "fieldstream put d --json-body {} --server tcp://h:1 --ack stored --if-rev 0",
        "fieldstream splice d --edits [] --server tcp://h:1",
        "fieldstream add d a.b -1.5 --server tcp://h:1",
        "fieldstream add d 5 --path-json [] --server tcp://h:1",
        "fieldstream ls --server tcp://h:1",
        "fieldstream watch a b -n 3 --json --server tcp://h:1",
        "fieldstream replay a b --doc x --watchers 1 --window 8 --server quic://h:1 --ca f",
        "fieldstream bench --server tcp://h:1 --clients 10k --rate 15k --pids 1,2 --json",
        "fieldstream bench --server tls://h:1 --ca f --docs 3 --find-max --rates 1k,2k --plot p.svg --ack stored",
        "fieldstream init dir --host a --host b --force",
        "fieldstream --config f config show --origin",
        "fieldstream version --json",
        "fieldstream report html page.html --db d --changes 9 --top 5",
        "fieldstream status",
        "fieldstream status --nats nats://a:1 --nats-creds f --json",
        "fieldstream status --ready-file r",
    ] {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn contradictions_are_usage_errors() {
    for line in [
        "fieldstream",
        "fieldstream splice d 1 --server tcp://h:1",
        "fieldstream splice d 1 2 x --edits [] --server tcp://h:1",
        "fieldstream put d text --json-body {} --server tcp://h:1",
        "fieldstream watch --server tcp://h:1",
        "fieldstream get d --server tcp://h:1 --timeout 10",
        "fieldstream replay a --server tcp://h:1",
        "fieldstream bench --server tcp://h:1 --rate 5 --find-max",
        "fieldstream bench --server tcp://h:1 --docs 5 --watchers-per-doc 2",
        "fieldstream bench --server tcp://h:1 --size 5",
        "fieldstream bench --server tcp://h:1 --clients 0",
        "fieldstream processor --lanes 2",
        "fieldstream init a --data b",
        "fieldstream status --nats nats://a:1 --data d",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}
