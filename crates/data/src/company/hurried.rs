//! Questions as people type them: words left out, no capital letter, no question mark, a greeting or thanks.
//!
//! Trained on the wordings alone, a small model learns which words stand where; from hurried ones it learns which words
//! matter.

use super::FactKind;
use crate::Language;
use crate::random::Random;

/// Most words that are left out.
pub(super) const MAX_LEFT_OUT: usize = 3;
/// Words that stay, the subject among them.
const MIN_WORDS: usize = 3;

/// French, English. No word of them is in a test wording.
pub(super) const GREETINGS: [[&str; 4]; 2] =
    [["Bonjour,", "Salut,", "Bonsoir,", "Coucou,"], ["Hello,", "Hi,", "Hey,", "Good morning,"]];
pub(super) const CLOSINGS: [[&str; 3]; 2] =
    [["Merci.", "Merci beaucoup.", "Urgent."], ["Thanks.", "Cheers.", "Urgent."]];

/// A hurried form of a wording, its `{s}` not yet filled in. What is asked can still be told from the other kind of fact
/// about the same subject.
pub(super) fn hurried(
    wording: &str,
    language: Language,
    kind: FactKind,
    random: &mut Random,
) -> String {
    let mut words: Vec<&str> = wording.split(' ').collect();
    if random.chance(90) {
        for _ in 0..1 + random.below(MAX_LEFT_OUT) {
            leave_out_one(&mut words, &|words| tells_kind(words, language, kind), random);
        }
    }
    let mut text = words.join(" ");
    if random.chance(30) {
        text = lower_case_start(text.trim_end_matches(['.', '?', ' ']));
    }
    let column = usize::from(language != Language::French);
    if random.chance(15) {
        text = format!("{} {}", random.pick(&GREETINGS[column]), lower_case_start(&text));
    }
    if random.chance(15) {
        text = format!("{text} {}", random.pick(&CLOSINGS[column]));
    }
    text
}

/// Whether a word can be left out: the subject and marks that stand alone cannot.
pub(super) fn is_optional(word: &str) -> bool {
    !word.contains("{s}") && word.chars().any(char::is_alphanumeric)
}

/// Leaves out one word, unless too few would stay or what stays would not be clear.
fn leave_out_one(words: &mut Vec<&str>, is_clear: &dyn Fn(&[&str]) -> bool, random: &mut Random) {
    let optional: Vec<usize> = (0..words.len()).filter(|&i| is_optional(words[i])).collect();
    if optional.len() + 1 > MIN_WORDS {
        let chosen = *random.pick(&optional);
        let word = words.remove(chosen);
        if !is_clear(words) {
            words.insert(chosen, word);
        }
    }
}

/// Whether one of the words, of four letters or more, is in no training wording of the family's other kind.
fn tells_kind(words: &[&str], language: Language, kind: FactKind) -> bool {
    let others = kind.sibling().phrases(language).training;
    let is_word_of = |wording: &str, word: &str| wording.split(' ').map(bare).any(|w| w == word);
    words.iter().filter(|word| is_optional(word)).map(|word| bare(word)).any(|word| {
        word.chars().count() >= 4 && !others.iter().any(|wording| is_word_of(wording, &word))
    })
}

/// A word in lower case, without the marks around it.
fn bare(word: &str) -> String {
    word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
}

fn lower_case_start(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().collect::<String>() + characters.as_str()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hurried_question_keeps_its_subject_and_enough_words() {
        let mut random = Random::new(1, "test");
        for wording in ["Quelle est la couleur de la {s} ?", "La {s}, quelle couleur ?"] {
            let mut forms = std::collections::HashSet::new();
            for _ in 0..300 {
                let form = hurried(wording, Language::French, FactKind::Colour, &mut random);
                assert!(form.contains("{s}") && form.to_lowercase().contains("couleur"), "{form}");
                let n_words = form.split(' ').filter(|w| w.contains(char::is_alphanumeric)).count();
                assert!(n_words >= MIN_WORDS, "{form}");
                forms.insert(form);
            }
            assert!(forms.len() > 30, "{} forms", forms.len());
        }
    }
}
