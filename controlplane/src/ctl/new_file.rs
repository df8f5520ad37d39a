//! Files that hold secrets: new, mode 0600, whole or not there.
//!
//! # Invariants
//!
//! - A file that exists is never written to or replaced.
//! - The name appears when everything is on the disk; what was begun and not finished is removed.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::failure::Failure;

/// A file on its way. Dropped before [`finish`](Self::finish), it leaves nothing.
pub(super) struct NewFile {
    file: File,
    begun: PathBuf,
    path: PathBuf,
    is_finished: bool,
}

impl NewFile {
    /// Begins, beside the place where it will be. Fails when something is there already, or nothing can be written.
    pub(super) fn begin(path: &Path) -> Result<Self, Failure> {
        let failed = |error: Error| Failure::file(path, &error);
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let name = path
            .file_name()
            .ok_or_else(|| failed(Error::from(ErrorKind::IsADirectory)))?;
        let mut begun = std::ffi::OsString::from(".");
        begun.push(name);
        begun.push(format!(".{}.partial", std::process::id()));
        let begun = path.with_file_name(begun);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&begun)
            .map_err(failed)?;
        Ok(Self {
            file,
            begun,
            path: path.to_owned(),
            is_finished: false,
        })
    }

    /// Appends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file
            .write_all(bytes)
            .map_err(|error| Failure::file(&self.path, &error))
    }

    /// Brings it to the disk and gives it its name.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.file
            .sync_all()
            .map_err(|error| Failure::file(&self.path, &error))?;
        match renameat_with(CWD, &self.begun, CWD, &self.path, RenameFlags::NOREPLACE) {
            Ok(()) => self.is_finished = true,
            Err(rustix::io::Errno::EXIST) => return Err(exists(&self.path)),
            Err(error) => return Err(Failure::file(&self.path, &error.into())),
        }
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            Some(_) | None => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| Failure::file(folder, &error))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nothing more can be done about what cannot be removed.
            let _ = std::fs::remove_file(&self.begun);
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::usage(format!(
        "{} exists and is not overwritten: remove it, or name another file",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_there_whole_and_private_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let mut file = NewFile::begin(&path).unwrap();
        file.write(b"one ").unwrap();
        assert!(!path.exists());
        file.write(b"two").unwrap();
        file.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["secret"]);
    }

    #[test]
    fn what_was_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = NewFile::begin(&dir.path().join("secret")).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_exists_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "old").unwrap();
        assert!(NewFile::begin(&path).is_err());
        // Also when it comes into being in the meantime, and when it is a link to nowhere.
        std::fs::remove_file(&path).unwrap();
        let file = NewFile::begin(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(file.finish().is_err());
        assert!(NewFile::begin(&path).is_err());
        assert_eq!(names(dir.path()), ["secret"]);
        assert!(NewFile::begin(Path::new("/")).is_err());
        assert!(NewFile::begin(&dir.path().join("none/secret")).is_err());
    }
}
