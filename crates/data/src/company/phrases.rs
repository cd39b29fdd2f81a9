//! How one kind of fact is asked and stated: `{s}` stands for the subject, `{a}` for the answer.

/// Wordings of one kind of fact in one language, all written by hand.
pub(super) struct Phrases {
    /// Questions used for training.
    pub(super) training: [&'static str; 12],
    /// Questions used for measuring; none shares four consecutive words with a training wording.
    pub(super) test: [&'static str; 4],
    /// Sentences of the documents.
    pub(super) statements: [&'static str; 8],
    /// Titles of the documents, one per edition.
    pub(super) titles: [&'static str; 3],
    /// First sentences of the documents, one per edition.
    pub(super) openings: [&'static str; 3],
}

/// Wordings of one kind of fact.
pub(super) struct KindText {
    pub(super) french: Phrases,
    pub(super) english: Phrases,
}

/// The wording with subject and answer put in. Subjects start with a consonant, so French needs no
/// elision.
pub(super) fn fill(wording: &str, subject: &str, answer: &str) -> String {
    wording.replace("{s}", subject).replace("{a}", answer)
}
