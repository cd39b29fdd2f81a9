//! Exact match: whether an answer is the expected one, apart from case, outer white space and a final full stop.

use unicode_normalization::UnicodeNormalization;

/// The form in which answers are compared: lowercase in Unicode NFC, without outer white space and without one final full
/// stop.
///
/// Case is removed by the full lowercase mapping of Unicode, not by case folding: `É` equals `é`, but `STRASSE` does not
/// equal `straße`. Of several full stops only the last goes, so that an ellipsis stays one.
///
/// ```
/// assert_eq!(eval::answers::normalise(" 148 Euros.\n"), "148 euros");
/// assert_eq!(eval::answers::normalise("Ma\u{308}rz"), "märz");
/// ```
#[must_use]
pub fn normalise(answer: &str) -> String {
    // Composed last, because some letters with a mark have a composed form in lowercase only.
    let lower: String = answer.to_lowercase().nfc().collect();
    let trimmed = lower.trim();
    trimmed.strip_suffix('.').unwrap_or(trimmed).trim_end().to_owned()
}

/// Whether `got` counts as the answer `expected`.
///
/// ```
/// assert!(eval::answers::is_match("148 euros", "148 Euros."));
/// assert!(!eval::answers::is_match("148 euros", "It costs 148 euros."));
/// ```
#[must_use]
pub fn is_match(expected: &str, got: &str) -> bool {
    normalise(expected) == normalise(got)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn case_white_space_and_one_full_stop_do_not_count() {
        for got in ["Élise Le Goff", "élise le goff.", "  ÉLISE LE GOFF. \n", "Élise Le Goff ."]
        {
            assert!(is_match("Élise Le Goff", got), "{got:?}");
        }
    }

    #[test]
    fn composed_and_decomposed_letters_are_the_same() {
        assert!(is_match("é", "e\u{301}"));
        assert!(is_match("Ǖ", "u\u{308}\u{304}"));
        assert!(is_match("J\u{30c}", "\u{1f0}"));
    }

    #[test]
    fn everything_else_counts() {
        let wrong = [
            "",
            ".",
            "elise le goff",
            "Élise  Le Goff",
            "Élise Le Goff..",
            "Élise Le Goff!",
            "Élise Le Goff, Brest",
        ];
        for got in wrong {
            assert!(!is_match("Élise Le Goff", got), "{got:?}");
        }
    }

    #[test]
    fn every_company_answer_matches_itself_and_no_other_of_its_kind() {
        let questions = data::company::test_questions();
        for a in &questions {
            let spoken = format!(" {}.", a.answer.to_uppercase());
            assert!(is_match(&a.answer, &spoken), "{}", a.answer);
        }
        for a in questions.iter().step_by(41) {
            let others = questions.iter().filter(|b| b.kind == a.kind && b.fact_id != a.fact_id);
            for b in others.filter(|b| b.language == a.language) {
                assert!(!is_match(&a.answer, &b.answer), "{} and {}", a.answer, b.answer);
            }
        }
    }

    proptest! {
        #[test]
        fn matching_is_symmetric_and_survives_decoration(a in ".{0,12}", b in ".{0,12}") {
            prop_assert!(is_match(&a, &a));
            prop_assert_eq!(is_match(&a, &b), is_match(&b, &a));
            let padded = format!("\t{a} ");
            prop_assert!(is_match(&a, &padded));
            let decomposed: String = a.nfd().collect();
            prop_assert!(is_match(&a, &decomposed));
        }
    }
}
