//! sluicectl: the operator's command line.
