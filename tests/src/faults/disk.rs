//! A small disk of its own for a folder, which can be filled: an ext4 image behind a loop device, so that
//! writes are synced as on a real one. Needs root; `scripts/faults` gives the runner a mount namespace
//! of its own, so that nothing stays mounted whatever happens to it.

use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A mounted disk; unmounted when it is dropped.
#[derive(Debug)]
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Makes the folder a disk of so many bytes.
    ///
    /// # Errors
    /// Why that cannot be done here.
    pub fn mount(at: &Path, bytes: u64) -> Result<Disk, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root may mount disks".into());
        }
        fs::create_dir_all(at).map_err(|error| error.to_string())?;
        let image = at.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at))?;
        Ok(Disk { at: at.to_owned() })
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let Ok(balloon) = File::create(self.balloon()) else { return };
        let (mut end, mut piece_bytes) = (0, 1_u64 << 30);
        while piece_bytes >= 4 << 10 {
            match fallocate(&balloon, FallocateFlags::empty(), end, piece_bytes) {
                Ok(()) => end += piece_bytes,
                Err(_) => piece_bytes /= 2,
            }
        }
    }

    /// Gives it back.
    pub fn empty(&self) {
        let _ = fs::remove_file(self.balloon());
    }

    fn balloon(&self) -> PathBuf {
        self.at.join("balloon")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.at));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
