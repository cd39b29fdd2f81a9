//! The choice among the ways of cutting text, by the regular expression that a file gives.

use super::{Contractions, DigitGroup, Neighbours, Words, cased, gpt2};

/// A rule that cuts a text into words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Split {
    /// The rule at the head of [`super`], without contractions.
    Plain(DigitGroup),
    /// That rule: GPT-4, Llama 3, Qwen2.
    Contractions(DigitGroup),
    /// The rule of GPT-2.
    Gpt2,
    /// The rule of Tekken.
    Cased,
    /// Before every space.
    Spaced,
    /// No rule: a cut only where it changes nothing.
    Unmerged(Neighbours),
}

/// The rule of tokenizers that are trained here.
pub(crate) const OWN_SPLIT: Split = Split::Contractions(DigitGroup::One);

/// Words by the rule of tokenizers that are trained here.
pub(crate) fn own_words(text: &str) -> Words<'_> {
    Words::new(text, DigitGroup::One, Contractions::Apart)
}

impl Split {
    /// The rules that are regular expressions.
    const PATTERNS: [Split; 8] = [
        Split::Plain(DigitGroup::One),
        Split::Plain(DigitGroup::Two),
        Split::Plain(DigitGroup::Three),
        Split::Contractions(DigitGroup::One),
        Split::Contractions(DigitGroup::Two),
        Split::Contractions(DigitGroup::Three),
        Split::Gpt2,
        Split::Cased,
    ];

    /// The rule that a regular expression defines, if it is one of those known here, letter for letter.
    pub(crate) fn of_pattern(pattern: &str) -> Option<Split> {
        Split::PATTERNS.into_iter().find(|split| split.pattern().as_deref() == Some(pattern))
    }

    /// The regular expression.
    pub(crate) fn pattern(&self) -> Option<String> {
        match self {
            Split::Plain(digits) => Some(digits.pattern().to_string()),
            Split::Contractions(digits) => {
                Some(format!("(?i:'s|'t|'re|'ve|'m|'ll|'d)|{}", digits.pattern()))
            }
            Split::Gpt2 => Some(gpt2::PATTERN.to_string()),
            Split::Cased => Some(cased::PATTERN.to_string()),
            Split::Spaced | Split::Unmerged(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::{CasedWords, Gpt2Words};
    use std::collections::HashMap;

    fn words<'a>(split: &Split, text: &'a str) -> Vec<&'a str> {
        let ranges: Vec<(usize, usize)> = match split {
            Split::Plain(digits) => Words::new(text, *digits, Contractions::Ignored).collect(),
            Split::Contractions(digits) => Words::new(text, *digits, Contractions::Apart).collect(),
            Split::Gpt2 => Gpt2Words::new(text).collect(),
            Split::Cased => CasedWords::new(text).collect(),
            Split::Spaced | Split::Unmerged(_) => panic!("no regular expression"),
        };
        ranges.into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    /// `golden/make_family.py` wrote the words that the `tokenizers` package cuts.
    #[test]
    fn words_are_those_of_the_regular_expression() {
        let file = include_str!("../../../../golden/tokenizer/family/words.json");
        let cut: HashMap<String, Vec<Vec<String>>> = serde_json::from_str(file).unwrap();
        assert_eq!(cut.len(), 4);
        for (pattern, texts) in cut {
            let split = Split::of_pattern(&pattern).unwrap();
            for expected in texts {
                assert_eq!(words(&split, &expected.concat()), expected, "{split:?}");
            }
        }
    }

    #[test]
    fn patterns_name_their_rules() {
        for split in Split::PATTERNS {
            assert_eq!(Split::of_pattern(&split.pattern().unwrap()), Some(split));
        }
        assert_eq!(Split::of_pattern(r"\w+"), None);
    }
}
