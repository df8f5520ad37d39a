//! Randomness from the kernel: keys, secrets, seeds. Nothing else in the process draws from it.

/// So many random bytes. Fails only where the kernel has no such call.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_keys_differ() {
        let keys: [[u8; 32]; 2] = [random().expect("randomness"), random().expect("randomness")];
        assert_ne!(keys[0], keys[1]);
    }
}
