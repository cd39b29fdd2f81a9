//! The last pass over an expanded unit: elision, contraction, spacing, capitals.

use super::phrase::{ARTICLE, ASPIRATE, is_impure_initial, is_vowel_initial};
use crate::Language;

/// Stands for a line break in a rule.
const LINE_BREAK: &str = "¶";

/// Resolves the marks that `phrase` leaves and makes the text presentable.
pub(super) fn polish(language: Language, text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    let mut tokens = text.split_ascii_whitespace().peekable();
    while let Some(token) = tokens.next() {
        if token == LINE_BREAK {
            out.push('\n');
            continue;
        }
        if is_loose_punctuation(language, token) {
            out.push_str(token);
            continue;
        }
        let is_elided = out.ends_with('\'') && !out.ends_with("po'");
        let is_open = out.is_empty() || out.ends_with(['\n', '(', '¿', '¡']);
        if !is_open && !is_elided && !opens_quote(language, &out) {
            out.push(' ');
        }
        let next = tokens.peek().copied().unwrap_or("");
        match language {
            Language::French => push_french(&mut out, token, next),
            Language::English if matches!(token, "a" | "A") && takes_an(next) => {
                out.push_str(token);
                out.push('n');
            }
            Language::Italian => push_italian(&mut out, token, next),
            Language::German => push_contracted(&mut out, token, &GERMAN),
            Language::Spanish => push_spanish(&mut out, token, next),
            Language::English => out.push_str(token),
        }
    }
    out.retain(|c| c != ARTICLE && c != ASPIRATE);
    capitalise(&out)
}

const FRENCH: [(&str, &str, &str); 4] =
    [("de", "le", "du"), ("de", "les", "des"), ("à", "le", "au"), ("à", "les", "aux")];

const GERMAN: [(&str, &str, &str); 6] = [
    ("in", "dem", "im"),
    ("an", "dem", "am"),
    ("zu", "dem", "zum"),
    ("zu", "der", "zur"),
    ("von", "dem", "vom"),
    ("bei", "dem", "beim"),
];

const SPANISH: [(&str, &str, &str); 2] = [("de", "el", "del"), ("a", "el", "al")];

fn is_loose_punctuation(language: Language, token: &str) -> bool {
    match token {
        "," | "." | ")" | "…" => true,
        ";" | ":" | "!" | "?" => language != Language::French,
        "”" => language == Language::English,
        "“" => language == Language::German,
        "»" => matches!(language, Language::Spanish | Language::Italian),
        _ => false,
    }
}

/// French alone has a space inside its quotation marks.
fn opens_quote(language: Language, out: &str) -> bool {
    match language {
        Language::French => false,
        Language::English => out.ends_with('“'),
        Language::German => out.ends_with('„'),
        Language::Spanish | Language::Italian => out.ends_with('«'),
    }
}

/// Pushes a token, merging a marked article with the preposition before it.
fn push_contracted(out: &mut String, token: &str, table: &[(&str, &str, &str)]) {
    let Some(article) = token.strip_prefix(ARTICLE) else {
        out.push_str(token);
        return;
    };
    let before = out.trim_end();
    for (preposition, with, merged) in table {
        if *with != article {
            continue;
        }
        let Some(head) = strip_word(before, preposition) else { continue };
        let length = head.len();
        let capital = before[length..].starts_with(|c: char| c.is_uppercase());
        out.truncate(length);
        let start = out.len();
        out.push_str(merged);
        if capital {
            let first = merged.chars().next().map_or(0, char::len_utf8);
            let upper = merged[..first].to_uppercase();
            out.replace_range(start..start + first, &upper);
        }
        return;
    }
    out.push_str(article);
}

/// What stands before `word` when the text ends with that word, whatever its capital.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let start = text.len().checked_sub(word.len())?;
    if !text.is_char_boundary(start) || text[start..].to_lowercase() != word {
        return None;
    }
    let head = &text[..start];
    (head.is_empty() || head.ends_with([' ', '\'', '(', '\n'])).then_some(head)
}

fn push_french(out: &mut String, token: &str, next: &str) {
    let bare = token.strip_prefix(ARTICLE).unwrap_or(token);
    let lower = bare.to_lowercase();
    let elides = matches!(
        lower.as_str(),
        "le" | "la"
            | "de"
            | "que"
            | "je"
            | "ne"
            | "se"
            | "me"
            | "te"
            | "lorsque"
            | "puisque"
            | "jusque"
    );
    let is_if = lower == "si" && matches!(next, "il" | "ils");
    if is_if || (elides && elision_before(next)) {
        out.push_str(&bare[..bare.len() - 1]);
        out.push('\'');
    } else {
        push_contracted(out, token, &FRENCH);
    }
}

fn elision_before(next: &str) -> bool {
    const BLOCKED: [&str; 18] = [
        "haut",
        "haute",
        "hautes",
        "hauteur",
        "hasard",
        "huit",
        "hors",
        "haie",
        "haies",
        "héros",
        "hameau",
        "halle",
        "halles",
        "onze",
        "onzième",
        "oui",
        "huitième",
        "hangar",
    ];
    if next.starts_with([ASPIRATE, ARTICLE]) {
        return false;
    }
    let word = next.trim_end_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    is_vowel_initial(next) && !BLOCKED.contains(&word.as_str())
}

fn takes_an(next: &str) -> bool {
    let word = next.to_lowercase();
    if ["one", "once", "uni", "use", "usu", "eu"].iter().any(|p| word.starts_with(p)) {
        return false;
    }
    let number = word.starts_with('8') || matches!(word.get(..2), Some("11" | "18"));
    word.starts_with(['a', 'e', 'i', 'o', 'u'])
        || word.starts_with("hour")
        || word.starts_with("honest")
        || (number && word.len() < 3)
}

fn push_italian(out: &mut String, token: &str, next: &str) {
    if token == "e" && next.starts_with(['e', 'E']) {
        out.push_str("ed");
        return;
    }
    if token == "a" && next.starts_with(['a', 'A']) {
        out.push_str("ad");
        return;
    }
    let Some(article) = token.strip_prefix(ARTICLE) else {
        out.push_str(token);
        return;
    };
    // An elided article carries its noun: l'orologio.
    let (form, rest) = match article.strip_prefix("l'") {
        Some(rest) => ("l'", rest),
        None => (article, ""),
    };
    debug_assert!(form != "il" || !is_impure_initial(next), "il {next}");
    let before = out.trim_end();
    for (preposition, stem) in [
        ("di", "de"),
        ("a", "a"),
        ("da", "da"),
        ("in", "ne"),
        ("su", "su"),
        ("A", "A"),
        ("In", "Ne"),
    ] {
        let found = before
            .strip_suffix(preposition)
            .is_some_and(|head| head.is_empty() || head.ends_with([' ', '(', '\n']));
        if !found {
            continue;
        }
        out.truncate(before.len() - preposition.len());
        out.push_str(stem);
        out.push_str(match form {
            "il" => "l",
            "lo" => "llo",
            "la" => "lla",
            "l'" => "ll'",
            "i" => "i",
            "gli" => "gli",
            _ => "lle",
        });
        out.push_str(rest);
        return;
    }
    out.push_str(article);
}

fn push_spanish(out: &mut String, token: &str, next: &str) {
    let next = next.to_lowercase();
    let i_sound =
        next.starts_with(['i', 'í']) || (next.starts_with("hi") && !next.starts_with("hie"));
    if token == "y" && i_sound {
        out.push('e');
    } else if token == "o" && (next.starts_with('o') || next.starts_with("ho")) {
        out.push('u');
    } else {
        push_contracted(out, token, &SPANISH);
    }
}

/// True when the line so far is one word: the speaker's name in a dialogue.
fn is_speaker(text: &str) -> bool {
    let line = text.rsplit('\n').next().unwrap_or(text);
    !line.trim_end().contains(char::is_whitespace)
}

/// Capitalises the first letter of the text and of each sentence.
fn capitalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut starts = true;
    let mut ended = false;
    for c in text.chars() {
        if starts && c.is_alphanumeric() {
            out.extend(c.to_uppercase());
            starts = false;
            ended = false;
            continue;
        }
        match c {
            '.' | '!' | '?' => ended = true,
            // The speaker's name in a dialogue: what follows it is a sentence.
            ':' if is_speaker(&out) => starts = true,
            '\n' => starts = true,
            c if c.is_whitespace() => starts |= ended,
            '»' | '”' => starts = false,
            _ => {}
        }
        if !c.is_whitespace() && !matches!(c, '.' | '!' | '?') {
            ended = false;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::polish;
    use crate::Language;

    #[test]
    fn french_prepositions_merge_and_elide() {
        let text =
            "de \u{1}le moulin à \u{1}les halles , que Alban se assoit de \u{1}le \u{2}hêtre .";
        assert_eq!(
            polish(Language::French, text),
            "Du moulin aux halles, qu'Alban s'assoit du hêtre."
        );
        assert_eq!(polish(Language::French, "il sort de \u{1}le atelier"), "Il sort de l'atelier");
    }

    #[test]
    fn other_languages_contract_too() {
        assert_eq!(polish(Language::German, "in \u{1}dem Tal"), "Im Tal");
        assert_eq!(polish(Language::Spanish, "a \u{1}el puerto y hijos"), "Al puerto e hijos");
        assert_eq!(
            polish(Language::Italian, "su \u{1}il ponte di \u{1}l'orto"),
            "Sul ponte dell'orto"
        );
        assert_eq!(polish(Language::English, "a old hat. a hour"), "An old hat. An hour");
    }
}
