//! Who did what: records in a chain, each with the hash of the one before, so that a record changed, removed or put in
//! later is seen.

use super::UnixMillis;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: UnixMillis,
    /// Name of the token, `node <name>`, or `control plane`.
    pub who: String,
    /// Such as `policy.release`.
    pub action: &'static str,
    /// Such as `generation 7`. The store fills in the number where the entry says `generation` alone.
    pub what: String,
    /// In words, without secrets; empty for nothing.
    pub before: String,
    /// The same.
    pub after: String,
    /// Of the call.
    pub request_id: String,
}

/// What was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// From 1, without gaps.
    pub number: u64,
    /// When.
    pub at: UnixMillis,
    /// See [`AuditEntry::who`].
    pub who: String,
    /// See [`AuditEntry::action`].
    pub action: String,
    /// See [`AuditEntry::what`].
    pub what: String,
    /// See [`AuditEntry::before`].
    pub before: String,
    /// See [`AuditEntry::after`].
    pub after: String,
    /// See [`AuditEntry::request_id`].
    pub request_id: String,
    /// BLAKE3 over all of the above and the hash of the record before (zeros before the first).
    pub hash: [u8; 32],
}

impl AuditRecord {
    /// The record with this number that follows one with the hash `previous`.
    pub fn following(previous: &[u8; 32], number: u64, entry: AuditEntry) -> Self {
        let mut record = Self {
            number,
            at: entry.at,
            who: entry.who,
            action: entry.action.to_owned(),
            what: entry.what,
            before: entry.before,
            after: entry.after,
            request_id: entry.request_id,
            hash: [0; 32],
        };
        record.hash = record.hash_after(previous);
        record
    }

    /// True exactly when this is the record that was written after the one with the hash `previous`.
    pub fn follows(&self, previous: &[u8; 32]) -> bool {
        self.hash == self.hash_after(previous)
    }

    fn hash_after(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(previous);
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&self.at.0.to_le_bytes());
        let texts = [
            &self.who,
            &self.action,
            &self.what,
            &self.before,
            &self.after,
            &self.request_id,
        ];
        for text in texts {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}
