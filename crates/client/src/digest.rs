//! The digests by which a hub names its files.

use std::fmt::Write as _;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What the hub says the bytes of a file add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileDigest {
    /// SHA-256 of the bytes: files in large-file storage.
    Sha256(String),
    /// SHA-1 of `blob SIZE\0` and the bytes, by which git names files. It finds damage, not forgery.
    GitBlob(String),
}

/// A sum being made.
#[derive(Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl FileDigest {
    /// What is compared.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::GitBlob(_) => "the git blob id",
        }
    }

    /// In lower-case hexadecimal.
    #[must_use]
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Digits that it has.
    pub(crate) fn is_well_formed(&self) -> bool {
        let n_digits = match self {
            Self::Sha256(_) => 64,
            Self::GitBlob(_) => 40,
        };
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        self.hex().len() == n_digits && self.hex().bytes().all(is_digit)
    }

    /// Starts the sum of a file of `n_bytes`.
    pub(crate) fn hasher(&self, n_bytes: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitBlob(_) => {
                Hasher::GitBlob(Sha1::new().chain_update(format!("blob {n_bytes}\0")))
            }
        }
    }
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(bytes),
            Self::GitBlob(sum) => sum.update(bytes),
        }
    }

    pub(crate) fn hex(self) -> String {
        match self {
            Self::Sha256(sum) => hex(&sum.finalize()),
            Self::GitBlob(sum) => hex(&sum.finalize()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'hello\n' | sha256sum` and `printf 'hello\n' | git hash-object --stdin`.
    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let cases = [
            FileDigest::Sha256(
                "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".to_owned(),
            ),
            FileDigest::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".to_owned()),
        ];
        for digest in cases {
            assert!(digest.is_well_formed());
            let mut hasher = digest.hasher(6);
            hasher.update(b"hel");
            hasher.update(b"lo\n");
            assert_eq!(hasher.hex(), digest.hex(), "{}", digest.kind());
        }
        assert!(!FileDigest::Sha256("CE".repeat(32)).is_well_formed());
        assert!(!FileDigest::GitBlob("ce".repeat(32)).is_well_formed());
    }
}
