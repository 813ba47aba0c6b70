//! Power cuts: the writes of real commits, recorded with strace, and what the disk may hold when the
//! power goes at any moment between them. What was synced is there; of what was written since, any
//! part may be.

use super::*;
use crate::digest::Digests;
use crate::projection::{Batch, Projection};
use crate::test_log::TestLog;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::process::{Command, Stdio};

const DIRECTORY: &str = "FIELDSTREAM_TEST_POWER_CUT";
const COMMITS: u64 = 60;
const SECTOR: usize = 512;

fn options(directory: &Path) -> StoreOptions {
    StoreOptions { directory: directory.to_owned(), file_mode: 0o664, map_bytes: 64 << 20, history_revisions: 0 }
}

const IDENTITY: Identity = Identity { lanes: 1, log_id: 1, new_storer: 2, now_us: 3 };

fn digests(store: &Store) -> String {
    serde_json::to_string(&Digests::of(&store.read().unwrap(), 0).unwrap()).unwrap()
}

/// Commits of many sizes; behind each, a line that says what is durable now.
fn commit_and_tell(directory: &Path) {
    let store = Store::open(options(directory), &IDENTITY).unwrap();
    let mut acks = File::create(directory.join("acks")).unwrap();
    acks.write_all(format!("{}\n", digests(&store)).as_bytes()).unwrap();
    let mut log = TestLog::new(0, 1);
    for n in 0..COMMITS {
        // Rows within a page, of several pages, and many at once.
        for i in 0..1 + n % 5 * 7 {
            log.set_text("c", &log.document((n * 3 + i) % 23), &format!("{n}").repeat(1 + (n * n % 2500) as usize));
        }
        log.cut();
    }
    let mut projection = Projection::new(store.checkpoints().to_vec());
    for (sequence, message) in (1..).zip(&log.messages) {
        let read = store.read().unwrap();
        projection.handle(Batch::decode::<TableError>(0, sequence, message).unwrap(), &read).unwrap();
        drop(read);
        store.commit(&projection.writes(1)).unwrap();
        projection.committed();
        acks.write_all(format!("{}\n", digests(&store)).as_bytes()).unwrap();
    }
}

/// What the process did to the file.
enum Op {
    Write {
        offset: usize,
        bytes: Vec<u8>,
        synced: bool,
    },
    Sync,
    /// So many states were said to be durable.
    Told,
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |pair: &str| u8::from_str_radix(pair, 16).unwrap();
    text.split("\\x").skip(1).map(|pair| digits(&pair[..2])).collect()
}

/// The strings of a call, in order.
fn strings(call: &str) -> Vec<Vec<u8>> {
    assert!(!call.contains("\"..."), "strace cut a string short");
    call.split('"').skip(1).step_by(2).map(unhex).collect()
}

fn last_number(arguments: &str) -> usize {
    arguments.rsplit([',', ' ', '(']).find(|s| !s.is_empty()).unwrap().parse().unwrap()
}

/// Reads the trace: writes to `data.mdb`, wherever they were made, and the lines in `acks`.
fn recorded(trace: &str) -> Vec<Op> {
    let mut files: HashMap<String, (String, bool)> = HashMap::new();
    let mut at: HashMap<String, usize> = HashMap::new();
    let mut ops = Vec::new();
    for line in trace.lines() {
        let Some((_, call)) = line.split_once(' ') else { continue };
        let Some((name, rest)) = call.trim_start().split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        let arguments = arguments.trim_end().trim_end_matches(')');
        assert!(!line.contains("unfinished"), "calls overlap: {line:.100}");
        if name == "openat" {
            let path = String::from_utf8(strings(arguments).remove(0)).unwrap();
            let file = path.rsplit('/').next().unwrap().to_owned();
            files.insert(result.to_owned(), (file, arguments.contains("O_DSYNC") || arguments.contains("O_SYNC")));
            continue;
        }
        let fd = arguments.split(',').next().unwrap().to_owned();
        let Some((file, synced)) = files.get(&fd).cloned() else { continue };
        match (name, file.as_str()) {
            ("write", "acks") => ops.push(Op::Told),
            ("lseek", "data.mdb") => {
                at.insert(fd, result.parse().unwrap());
            }
            ("write" | "writev", "data.mdb") => {
                let bytes = strings(arguments).concat();
                let offset = at.get(&fd).copied().unwrap_or(0);
                at.insert(fd, offset + bytes.len());
                ops.push(Op::Write { offset, bytes, synced });
            }
            ("pwrite64" | "pwritev", "data.mdb") => {
                let bytes = strings(arguments).concat();
                ops.push(Op::Write { offset: last_number(arguments), bytes, synced });
            }
            ("fdatasync" | "fsync", "data.mdb") => ops.push(Op::Sync),
            _ => {}
        }
    }
    ops
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A random part of a write: whole sectors of it.
fn put_torn(image: &mut Vec<u8>, offset: usize, bytes: &[u8], random: &mut StdRng) {
    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
        if random.random_bool(0.5) {
            put(image, offset + n * SECTOR, sector);
        }
    }
}

#[test]
fn after_a_power_cut_the_file_is_a_commit_that_was_told_or_the_one_after() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return commit_and_tell(Path::new(&directory));
    }
    let Some(strace) = std::env::var_os("FIELDSTREAM_TEST_STRACE").filter(|path| Path::new(path).exists()) else {
        return eprintln!("SKIPPED: power cuts: FIELDSTREAM_TEST_STRACE names no program (scripts/test gets it)");
    };
    let temporary = tempfile::tempdir().unwrap();
    let (directory, trace) = (temporary.path().join("storer"), temporary.path().join("trace"));
    fs::create_dir(&directory).unwrap();
    let mut command = Command::new(strace);
    command.args(["-f", "-xx", "-s", "16000000", "-o"]).arg(&trace);
    command.args(["-e", "trace=openat,write,writev,pwrite64,pwritev,lseek,fsync,fdatasync"]);
    command.arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", "store::power_cut::after_a_power_cut_the_file_is_a_commit_that_was_told_or_the_one_after"]);
    let output = command.env(DIRECTORY, &directory).stdin(Stdio::null()).output().unwrap();
    if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("ptrace") {
        return eprintln!("SKIPPED: power cuts: this machine does not let strace trace");
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let told: Vec<String> = fs::read_to_string(directory.join("acks")).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(told.len() as u64, COMMITS + 1);
    let ops = recorded(&fs::read_to_string(&trace).unwrap());
    let whole = ops.iter().fold(Vec::new(), |mut image, op| {
        if let Op::Write { offset, bytes, .. } = op {
            put(&mut image, *offset, bytes);
        }
        image
    });
    assert!(whole == fs::read(directory.join("generations/1/data.mdb")).unwrap(), "every write was recorded");
    let (checked, ahead) = cut_everywhere(&ops, &told, temporary.path());
    eprintln!("{} writes and syncs, {checked} power cuts, {ahead} of them kept a commit nobody was told of", ops.len());
    assert!(checked > 500 && ahead > 0);
}

/// Cuts the power behind every write, and looks at what a disk may then hold.
fn cut_everywhere(ops: &[Op], told: &[String], folder: &Path) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(1);
    let (mut durable, mut pending): (Vec<u8>, Vec<(usize, &[u8])>) = (Vec::new(), Vec::new());
    let (mut acked, mut checked, mut ahead) = (0, 0, 0);
    for op in ops {
        match op {
            Op::Told => acked += 1,
            Op::Sync => pending.drain(..).for_each(|(offset, bytes)| put(&mut durable, offset, bytes)),
            // Its sync is only of itself.
            Op::Write { offset, bytes, synced: true } => put(&mut durable, *offset, bytes),
            Op::Write { offset, bytes, synced: false } => pending.push((*offset, bytes)),
        }
        if acked == 0 {
            continue;
        }
        for attempt in 0..4 {
            let mut image = durable.clone();
            for (offset, bytes) in &pending {
                match attempt {
                    0 => {}
                    1 => put(&mut image, *offset, bytes),
                    _ => put_torn(&mut image, *offset, bytes, &mut random),
                }
            }
            let found = opened(&image, folder);
            let state = told.iter().position(|state| *state == found);
            let state = state.unwrap_or_else(|| panic!("behind {acked} commits: no commit's state"));
            // `told[0]` is the empty file.
            assert!(state + 1 >= acked, "{acked} states were told, the file has gone back to {state}");
            assert!(state <= acked, "a commit that was not begun");
            ahead += usize::from(state == acked);
            checked += 1;
            if pending.is_empty() {
                break;
            }
        }
    }
    (checked, ahead)
}

fn opened(image: &[u8], folder: &Path) -> String {
    let directory = folder.join("cut");
    let generation = directory.join("generations/1");
    fs::create_dir_all(&generation).unwrap();
    fs::write(generation.join("data.mdb"), image).unwrap();
    let store = Store::open(options(&directory), &IDENTITY).unwrap();
    let found = digests(&store);
    drop(store);
    fs::remove_dir_all(&directory).unwrap();
    found
}
