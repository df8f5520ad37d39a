//! A flag that tells slow work that its result is not wanted any more.
//!
//! Reading, checking and compiling look at it between two rows, and within a long row between two values, so they end soon
//! after it is set. The longest stretch without a look is one sort of all rows, or one pass over a table that was built.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cheap to clone; all clones are one flag. Never unset.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    #[cfg(test)]
    looks: Option<Arc<Looks>>,
}

impl Cancel {
    /// Nothing is cancelled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the flag.
    pub fn cancel(&self) {
        // What is wanted is that the work ends; nothing is read through the flag.
        self.flag.store(true, Ordering::Relaxed);
    }

    /// True exactly when the flag is set.
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        #[cfg(test)]
        if let Some(looks) = &self.looks {
            looks.count(self);
        }
        self.flag.load(Ordering::Relaxed)
    }
}

/// Counts looks, and sets the flag at one of them.
#[cfg(test)]
#[derive(Debug)]
struct Looks {
    seen: std::sync::atomic::AtomicUsize,
    cancel_at: usize,
}

#[cfg(test)]
impl Looks {
    fn count(&self, cancel: &Cancel) {
        if self.seen.fetch_add(1, Ordering::Relaxed) == self.cancel_at {
            cancel.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Change, Inventory};
    use crate::{Generation, compile_rows_until, compile_until, convert, parse_until};

    const ROWS: usize = 500;
    /// Looks after the flag is set: one in each loop that is still to be entered.
    const LOOKS_AFTER_MAX: usize = 64;

    fn cancelled_at(look: usize) -> Cancel {
        Cancel {
            looks: Some(Arc::new(Looks {
                seen: 0.into(),
                cancel_at: look,
            })),
            ..Cancel::new()
        }
    }

    fn looks(cancel: &Cancel) -> usize {
        let looks = cancel.looks.as_ref().expect("one that counts");
        looks.seen.load(Ordering::Relaxed)
    }

    fn document() -> String {
        let mut text = String::from("rules:\n");
        for n in 0..ROWS {
            text.push_str(&format!(
                "- {{name: r{n}, who: {{users: [u{n}]}}, actions: publish, topics: [a/{n}], decision: allow}}\n"
            ));
        }
        text
    }

    /// Work that is cancelled at its first look, its last, and some between gives nothing and looks no more than a few times.
    fn check(what: &str, work: impl Fn(&Cancel) -> bool) {
        let whole = cancelled_at(usize::MAX);
        assert!(work(&whole), "{what}: nobody cancels it");
        let all = looks(&whole);
        assert!(all > 2 * ROWS, "{what}: {all} looks");
        for at in (0..all).step_by(all / 97) {
            let cancel = cancelled_at(at);
            assert!(!work(&cancel), "{what}: cancelled at look {at} of {all}");
            let after = looks(&cancel) - at;
            assert!(
                after <= LOOKS_AFTER_MAX,
                "{what}: {after} after {at} of {all}"
            );
        }
    }

    #[test]
    fn cancelled_work_ends_after_a_few_looks_and_gives_nothing() {
        let text = document();
        let rows = || crate::parse(&text, "p").expect("a good document");
        let changes = convert::to_messages(&rows());
        let changes = changes
            .iter()
            .map(|row| Change::from_message(row).expect("a row"));
        let inventory = Inventory::default().with(changes);
        check("reading", |cancel| parse_until(&text, "p", cancel).is_ok());
        check("a document", |cancel| {
            compile_until(&text, "p", Generation(1), None, cancel).is_ok()
        });
        check("rows", |cancel| {
            compile_rows_until(rows(), "p", Generation(1), None, cancel).is_ok()
        });
        check("an inventory", |cancel| {
            convert::compile_inventory_until(&inventory, Generation(1), None, cancel).is_ok()
        });
    }

    #[test]
    fn a_flag_that_is_set_at_once_costs_no_row() {
        let cancel = cancelled_at(0);
        let text = document();
        assert!(compile_until(&text, "p", Generation(1), None, &cancel).is_err());
        assert!(looks(&cancel) <= LOOKS_AFTER_MAX);
    }
}
