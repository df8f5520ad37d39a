//! Differential tests against other codecs.
