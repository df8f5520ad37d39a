//! The state directory: who this node is, and the last good generation.
//!
//! Owns the form of the files and how they are written: mode 0600, into a file beside, synced, renamed, and the directory
//! synced, so that there is always a whole file or none. Each begins with what it is and a version byte and ends with the
//! BLAKE3 of all before it. It decides nothing: what a file says is the caller's. Everything here may block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use sluice_policy::fleet::{Change, Inventory, ROW_BYTES_MAX, RowKey};
use sluice_proto::{Message, v1};
use zeroize::Zeroizing;

const LOCK_FILE: &str = "lock";
const IDENTITY_FILE: &str = "node";
const GENERATION_FILE: &str = "generation";
const IDENTITY_MAGIC: &[u8] = b"sluice node\n\x01";
const GENERATION_MAGIC: &[u8] = b"sluice generation\n\x01";
const CHECKSUM_BYTES: usize = 32;
/// Longest file of an identity; the name has at most 64 bytes.
const IDENTITY_BYTES_MAX: u64 = 1024;
/// Longest file of a generation: what a delivery may hold, and some for lengths.
const GENERATION_BYTES_MAX: u64 = 3 << 30;
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 1 << 16;

/// The state directory of one running process.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// Locked as long as it is open.
    _lock: File,
}

/// Who this node is.
#[derive(Clone)]
pub(super) struct Identity {
    /// Its name in the fleet.
    pub(super) node: String,
    /// What proves it.
    pub(super) secret: Zeroizing<[u8; 32]>,
    /// True exactly when the control plane has confirmed the membership.
    pub(super) is_member: bool,
}

/// A generation with its rows.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Which.
    pub(super) id: v1::GenerationId,
    /// Its rows.
    pub(super) rows: Inventory,
}

/// Why a file of the state directory is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not what was written.
    #[error("{path}: {what}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl std::fmt::Debug for Identity {
    /// Leaves the secret out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("is_member", &self.is_member)
            .finish_non_exhaustive()
    }
}

/// Refuses a directory that everybody may write to, also with the sticky bit: what is in it could be anybody's. The
/// control plane's `store/sqlite/file.rs` judges its own the same way; the two share no crate that touches files.
fn check_mode(path: &Path) -> io::Result<()> {
    let mode = |path: &Path| -> io::Result<u32> { Ok(fs::metadata(path)?.permissions().mode()) };
    let own = mode(path)?;
    let (shown, dir) = (format!("{:o}", own & 0o7777), path.display());
    if own & 0o002 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "everybody may write to it (mode {shown}), so nothing in it can be trusted: `chmod 700 {dir}`, or name a \
                 folder of its own inside it"
            ),
        ));
    }
    if own & 0o020 != 0 {
        tracing::warn!(%dir, mode = shown, "the group may write to the state directory; `chmod 700` it");
    }
    for above in fs::canonicalize(path)?.ancestors().skip(1) {
        // The sticky bit, as /tmp has it, keeps others from renaming what is not theirs.
        if mode(above)? & 0o1002 == 0o002 {
            tracing::warn!(
                dir = %above.display(),
                "everybody may write to a folder above the state directory, and so put another one in its place"
            );
        }
    }
    Ok(())
}

impl StateDir {
    /// Makes the directory where it is missing (mode 0700), and takes it for this process alone.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        check_mode(path)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                let text = "another process uses it; each needs a state directory of its own";
                io::Error::new(io::ErrorKind::ResourceBusy, text)
            } else {
                error.into()
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Who this node is; `None` before [`StateDir::write_identity`].
    pub(super) fn read_identity(&self) -> Result<Option<Identity>, BadFile> {
        let path = self.path.join(IDENTITY_FILE);
        let Some(bytes) = read(&path, IDENTITY_BYTES_MAX)? else {
            return Ok(None);
        };
        let bytes = Zeroizing::new(bytes);
        let damaged = |what| BadFile::Damaged {
            path: path.clone(),
            what,
        };
        let body = body(&bytes, IDENTITY_MAGIC).map_err(damaged)?;
        let (flag, rest) = body.split_first().ok_or_else(|| damaged("too short"))?;
        let (secret, name) = rest
            .split_first_chunk::<32>()
            .ok_or_else(|| damaged("too short"))?;
        let node = std::str::from_utf8(name).map_err(|_| damaged("no name"))?;
        Ok(Some(Identity {
            node: node.to_owned(),
            secret: Zeroizing::new(*secret),
            is_member: *flag == 1,
        }))
    }

    /// Writes who this node is. When it returns, it is on the disk.
    pub(super) fn write_identity(&self, identity: &Identity) -> io::Result<()> {
        self.replace(IDENTITY_FILE, |out| {
            out.put(IDENTITY_MAGIC)?;
            out.put(&[u8::from(identity.is_member)])?;
            out.put(&*identity.secret)?;
            out.put(identity.node.as_bytes())
        })
    }

    /// The last good generation; `None` when there is none.
    pub(super) fn read_generation(&self) -> Result<Option<Held>, BadFile> {
        let path = self.path.join(GENERATION_FILE);
        let Some(bytes) = read(&path, GENERATION_BYTES_MAX)? else {
            return Ok(None);
        };
        let bytes = Bytes::from(bytes);
        generation(&bytes)
            .map(Some)
            .map_err(|what| BadFile::Damaged { path, what })
    }

    /// Keeps a generation in the place of the one before. When it returns, it is on the disk.
    pub(super) fn write_generation(&self, held: &Held) -> io::Result<()> {
        self.replace(GENERATION_FILE, |out| {
            out.put(GENERATION_MAGIC)?;
            let id = held.id.encode_to_vec();
            out.put_part(&id)?;
            out.put(&(held.rows.len() as u64).to_le_bytes())?;
            for (_, row) in held.rows.iter() {
                out.put_part(row)?;
            }
            Ok(())
        })
    }

    /// Moves a generation that is of no use out of the way, for people to look at. Of several the last is kept.
    pub(super) fn set_generation_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.join("generation.damaged");
        fs::rename(self.path.join(GENERATION_FILE), &aside)?;
        Ok(aside)
    }

    /// A whole new file in the place of `name`, or nothing has changed.
    fn replace(
        &self,
        name: &str,
        fill: impl FnOnce(&mut Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        let beside = self.path.join(format!("{name}.new"));
        let written = write(&beside, fill);
        let done = written.and_then(|()| {
            fs::rename(&beside, self.path.join(name))?;
            File::open(&self.path)?.sync_all()
        });
        if done.is_err() {
            // A full disk should not also keep the half that did fit.
            let _ = fs::remove_file(&beside);
        }
        done
    }
}

fn write(path: &Path, fill: impl FnOnce(&mut Writer) -> io::Result<()>) -> io::Result<()> {
    // One that a killed process left may have another mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let mut out = Writer {
        file,
        hasher: blake3::Hasher::new(),
        gathered: Zeroizing::new(Vec::with_capacity(WRITE_BYTES)),
    };
    fill(&mut out)?;
    out.finish()
}

/// Writes and sums up what it writes.
struct Writer {
    file: File,
    hasher: blake3::Hasher,
    gathered: Zeroizing<Vec<u8>>,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.gather(bytes)
    }

    /// With its length before it.
    fn put_part(&mut self, bytes: &[u8]) -> io::Result<()> {
        let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        self.put(&len.to_le_bytes())?;
        self.put(bytes)
    }

    fn gather(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.gathered.len() + bytes.len() > WRITE_BYTES {
            self.file.write_all(&self.gathered)?;
            self.gathered.clear();
        }
        if bytes.len() > WRITE_BYTES {
            return self.file.write_all(bytes);
        }
        self.gathered.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        let sum = self.hasher.finalize();
        self.gather(sum.as_bytes())?;
        self.file.write_all(&self.gathered)?;
        self.file.sync_all()
    }
}

/// The whole file; `None` when there is none.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, BadFile> {
    let unreadable = |error| BadFile::Unreadable {
        path: path.to_owned(),
        error,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let len = file.metadata().map_err(unreadable)?.len();
    if len > bytes_max {
        return Err(BadFile::Damaged {
            path: path.to_owned(),
            what: "longer than it can be",
        });
    }
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(Some(bytes))
}

/// What stands between the beginning and the checksum.
fn body<'a>(bytes: &'a [u8], magic: &[u8]) -> Result<&'a [u8], &'static str> {
    let (name, version) = magic.split_at(magic.len() - 1);
    let rest = bytes.strip_prefix(name).ok_or("not a file of this kind")?;
    if !rest.starts_with(version) {
        return Err("written by another version of the program");
    }
    let end = bytes
        .len()
        .checked_sub(CHECKSUM_BYTES)
        .filter(|end| *end >= magic.len())
        .ok_or("cut short")?;
    let (summed, sum) = bytes.split_at(end);
    if blake3::hash(summed).as_bytes().as_slice() != sum {
        return Err("the checksum is wrong: it is damaged or cut short");
    }
    summed.get(magic.len()..).ok_or("cut short")
}

/// Reads a generation. Its rows are copied: slices of the file would keep all of it alive as long as one row is held.
fn generation(bytes: &Bytes) -> Result<Held, &'static str> {
    let mut left = bytes.slice_ref(body(bytes, GENERATION_MAGIC)?);
    let id = part(&mut left)?;
    let id = v1::GenerationId::decode(id).map_err(|_| "the generation's id cannot be read")?;
    let count = take(&mut left, 8)?;
    let count = count.as_ref().try_into().map_or(0, u64::from_le_bytes);
    let mut changes = Vec::new();
    for _ in 0..count {
        let row = part(&mut left)?;
        if row.len() > ROW_BYTES_MAX {
            return Err("a row is too long");
        }
        let inside = v1::Row::decode(row.clone()).map_err(|_| "a row cannot be read")?;
        let key = RowKey::of(&inside).ok_or("a row of a kind that is not known")?;
        changes.push(Change {
            key,
            row: Some(Bytes::copy_from_slice(&row)),
        });
    }
    if !left.is_empty() {
        return Err("longer than it says");
    }
    let rows = Inventory::default().with(changes);
    if rows.digest().as_slice() != id.digest {
        return Err("the rows do not add up to the digest");
    }
    Ok(Held { id, rows })
}

fn part(left: &mut Bytes) -> Result<Bytes, &'static str> {
    let len = take(left, 4)?;
    let len = len.as_ref().try_into().map_or(0, u32::from_le_bytes);
    take(left, usize::try_from(len).unwrap_or(usize::MAX))
}

fn take(left: &mut Bytes, len: usize) -> Result<Bytes, &'static str> {
    if left.len() < len {
        return Err("shorter than it says");
    }
    Ok(left.split_to(len))
}

#[cfg(test)]
mod tests;
