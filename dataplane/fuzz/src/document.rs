//! A policy document of any text: taken or refused, with places that exist, and the same each time.

use sluice_policy::{Generation, compile};

/// Input: the document.
pub fn document(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let compiled = compile(text, "fuzz.yaml", Generation(1), None);
    match &compiled {
        Ok(snapshot) => {
            // What compiles beside itself is itself: nothing depends on what was there before.
            let again = compile(text, "fuzz.yaml", Generation(2), Some(snapshot));
            let again = again.unwrap_or_else(|errors| panic!("refused the second time: {errors}"));
            assert_eq!(snapshot.digest(), again.digest());
        }
        Err(errors) => {
            assert!(!errors.problems().is_empty());
            let lines = text.split(['\n', '\r']).count() + 1;
            for problem in errors.problems() {
                assert!(problem.at.line as usize <= lines, "{problem:?}");
                assert!(!problem.message.is_empty());
            }
        }
    }
}
