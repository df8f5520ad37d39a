//! Who did what: records in a chain, each with the hash of the one before, so that a record changed, removed or put in
//! later is seen.

use super::UnixMillis;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When.
    pub at: UnixMillis,
    /// Name of the token, `node <name>`, `control plane`, or `sluicectl` for a restore, which has no caller.
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
    /// Address and port of the caller's end of the connection; empty where there is no caller.
    pub peer: String,
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
    /// See [`AuditEntry::peer`]. `None`: it was written before peers were recorded.
    pub peer: Option<String>,
    /// BLAKE3 over all of the above that there is and the hash of the record before (zeros before the first).
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
            peer: Some(entry.peer),
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
        // A record with a peer hashes one text more than one without, so neither can be made into the other.
        for text in texts.into_iter().chain(&self.peer) {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(texts: &[(String, u64)]) -> Vec<AuditRecord> {
        let mut records: Vec<AuditRecord> = Vec::new();
        for (place, (text, at)) in texts.iter().enumerate() {
            let previous = records.last().map_or([0; 32], |record| record.hash);
            let entry = AuditEntry {
                at: UnixMillis(*at),
                who: text.clone(),
                action: "policy.release",
                what: "generation 1".into(),
                before: String::new(),
                after: text.clone(),
                request_id: String::new(),
                peer: "10.0.0.1:7".into(),
            };
            let number = place as u64 + 1;
            records.push(AuditRecord::following(&previous, number, entry));
        }
        records
    }

    fn is_whole(records: &[AuditRecord]) -> bool {
        let mut previous = [0; 32];
        records.iter().enumerate().all(|(place, record)| {
            let follows = record.number == place as u64 + 1 && record.follows(&previous);
            previous = record.hash;
            follows
        })
    }

    proptest! {
        #[test]
        fn a_record_changed_removed_moved_or_put_in_is_seen(
            texts in prop::collection::vec((".{0,6}", any::<u64>()), 2..12),
            place in any::<prop::sample::Index>(),
            field in 0..11,
        ) {
            let records = chain(&texts);
            prop_assert!(is_whole(&records));
            let place = place.index(records.len());

            let mut changed = records.clone();
            let record = &mut changed[place];
            match field {
                0 => record.number += 1,
                1 => record.at.0 ^= 1,
                2 => record.who.push('x'),
                3 => record.action.push('x'),
                4 => record.what.push('x'),
                5 => record.before.push('x'),
                6 => record.after.push('x'),
                7 => record.request_id.push('x'),
                8 => record.peer = None,
                9 => record.peer = Some(String::new()),
                _ => record.hash[7] ^= 1,
            }
            prop_assert!(!is_whole(&changed));

            // The last one alone can go unseen by the chain; the store keeps its number beside it.
            let mut removed = records.clone();
            removed.remove(place);
            prop_assert_eq!(is_whole(&removed), place == records.len() - 1);

            let mut put_in = records.clone();
            put_in.insert(place, records[place].clone());
            prop_assert!(!is_whole(&put_in));

            let mut moved = records.clone();
            moved.swap(place, (place + 1) % records.len());
            prop_assert!(!is_whole(&moved));
        }

        #[test]
        fn a_record_from_before_peers_is_whole_and_takes_none_later(text in ".{0,6}", peer in ".{0,6}") {
            let mut records = chain(&[(text.clone(), 1), (text, 2)]);
            let old = &mut records[0];
            old.peer = None;
            old.hash = old.hash_after(&[0; 32]);
            records[1].hash = records[1].hash_after(&records[0].hash);
            prop_assert!(is_whole(&records));
            records[0].peer = Some(peer);
            prop_assert!(!is_whole(&records));
        }

        #[test]
        fn text_does_not_move_from_one_field_to_the_next(text in ".{1,8}") {
            let mut records = chain(&[(text, 1)]);
            let record = &mut records[0];
            record.before = std::mem::take(&mut record.after);
            prop_assert!(!is_whole(&records));
        }
    }
}
