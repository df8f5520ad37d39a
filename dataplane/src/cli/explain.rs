//! `explain`: what a policy decides about one request, by which rule, and which rules were passed over.

use std::io::Write;

use sluice_policy::Generation;

use super::{EXIT_POLICY, ExplainArgs, complain};

pub(super) fn explain(args: &ExplainArgs, out: &mut impl Write) -> u8 {
    let document = match super::read(&args.policy) {
        Ok(document) => document,
        Err(code) => return code,
    };
    let name = args.policy.display().to_string();
    match sluice_policy::compile(&document, &name, Generation(1), None) {
        Ok(_) => complain(format_args!("explain needs the policy crate's explanation")),
        Err(errors) => {
            let _ = writeln!(out, "{errors}");
            EXIT_POLICY
        }
    }
}
