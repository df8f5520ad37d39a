//! The tables a snapshot answers from: who is asked once ([`who`], [`cidr`]), what is asked per packet ([`topic_trie`],
//! [`subscription`]).
//!
//! Tables know ranks, not rules: a rank is a rule's place in the order of decision, the lowest wins, and it is the rule's
//! id as well.

pub(crate) mod cidr;
pub(crate) mod class;
pub(crate) mod expression;
pub(crate) mod level;
pub(crate) mod patterns;
pub(crate) mod shared;
pub(crate) mod subscription;
pub(crate) mod topic_trie;
pub(crate) mod who;

/// The rank of no rule: behind every rank.
pub(crate) const NO_RANK: u32 = u32::MAX;
