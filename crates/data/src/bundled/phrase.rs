//! Noun phrases: determiner, adjectives and noun, agreeing by the rules of each language.
//!
//! An article that may merge with a preposition is preceded by `ARTICLE`, a French word that forbids
//! elision by `ASPIRATE`; `polish` resolves and removes both.

use super::lexicon::{Gender, Habit, Lexicon, Noun};
use crate::Language;

/// Before an article that contracts with a preposition (`de le` to `du`).
pub(super) const ARTICLE: char = '\u{1}';
/// Before a French word whose h forbids elision.
pub(super) const ASPIRATE: char = '\u{2}';

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Determiner {
    None,
    A,
    The,
    My,
    Your,
    /// The owner's gender matters in English and German.
    OfHim,
    OfHer,
    This,
    /// Partitive: some flour.
    Some,
}

/// German case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Case {
    Nominative,
    Accusative,
    Dative,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Singular,
    Plural,
}

/// What is asked of a noun phrase.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phrase {
    pub(super) noun: usize,
    pub(super) adjectives: [Option<usize>; 2],
    pub(super) determiner: Determiner,
    pub(super) count: Count,
    pub(super) case: Case,
}

impl Phrase {
    /// Appends the phrase to `out`.
    pub(super) fn write(&self, language: Language, lexicon: &Lexicon, out: &mut String) {
        match language {
            Language::German => self.write_german(lexicon, out),
            _ => self.write_plain(language, lexicon, out),
        }
    }

    fn noun<'a>(&self, lexicon: &'a Lexicon) -> (&'a Noun, &'a str, Gender) {
        let noun = &lexicon.nouns[self.noun];
        match self.count {
            Count::Singular => (noun, &noun.singular, noun.gender),
            Count::Plural => (noun, &noun.plural, noun.plural_gender),
        }
    }

    fn write_plain(&self, language: Language, lexicon: &Lexicon, out: &mut String) {
        let (noun, word, gender) = self.noun(lexicon);
        let form = usize::from(gender == Gender::Feminine) + 2 * usize::from(self.is_plural());
        let mut before = String::new();
        let mut after = String::new();
        for adjective in self.adjectives.iter().flatten().map(|&a| &lexicon.adjectives[a]) {
            let precedes = adjective.precedes || language == Language::English;
            let mut text = adjective.forms[form].as_str();
            if precedes && language == Language::French && form == 0 && vowel_follows(word, noun) {
                text = french_before_vowel(text);
            }
            if precedes {
                before.push_str(text);
                before.push(' ');
            } else {
                after.push(' ');
                after.push_str(text);
            }
        }
        let next = if before.is_empty() { word } else { before.as_str() };
        let opens = Opening {
            vowel: if before.is_empty() {
                vowel_follows(word, noun)
            } else {
                is_vowel_initial(next)
            },
            impure: is_impure_initial(next),
            stressed_a: before.is_empty() && noun.habit == Habit::StressedA,
        };
        let article = match language {
            Language::French => self.french_determiner(form, opens, !before.is_empty()),
            Language::English => self.english_determiner(),
            Language::Spanish => self.spanish_determiner(form, opens),
            _ => self.italian_determiner(form, opens),
        };
        out.push_str(&article);
        if !article.is_empty() && !article.ends_with('\'') {
            out.push(' ');
        }
        out.push_str(&before);
        if noun.habit == Habit::Aspirate {
            out.push(ASPIRATE);
        }
        out.push_str(word);
        out.push_str(&after);
    }

    fn is_plural(&self) -> bool {
        self.count == Count::Plural
    }

    fn french_determiner(&self, form: usize, opens: Opening, adjective_precedes: bool) -> String {
        let sounds_masculine = form == 0 || (form == 1 && opens.vowel);
        let possessive = |first: char| match form {
            2 | 3 => format!("{first}es"),
            _ if sounds_masculine => format!("{first}on"),
            _ => format!("{first}a"),
        };
        let definite = [format!("{ARTICLE}le"), "la".to_owned(), format!("{ARTICLE}les")];
        match self.determiner {
            Determiner::None => String::new(),
            Determiner::A if form < 2 => ["un", "une"][form].to_owned(),
            Determiner::A if adjective_precedes => "de".to_owned(),
            Determiner::A => "des".to_owned(),
            Determiner::The => definite[form.min(2)].clone(),
            Determiner::Some => format!("de {}", definite[form.min(2)]),
            Determiner::My => possessive('m'),
            Determiner::OfHim | Determiner::OfHer => possessive('s'),
            Determiner::Your => possessive('t'),
            Determiner::This => match form {
                0 if opens.vowel => "cet",
                0 => "ce",
                1 => "cette",
                _ => "ces",
            }
            .to_owned(),
        }
    }

    fn english_determiner(&self) -> String {
        match (self.determiner, self.count) {
            (Determiner::None, _) | (Determiner::A, Count::Plural) => "",
            (Determiner::A, Count::Singular) => "a",
            (Determiner::The, _) => "the",
            (Determiner::My, _) => "my",
            (Determiner::Your, _) => "your",
            (Determiner::OfHim, _) => "his",
            (Determiner::OfHer, _) => "her",
            (Determiner::This, Count::Singular) => "this",
            (Determiner::This, Count::Plural) => "these",
            (Determiner::Some, _) => "some",
        }
        .to_owned()
    }

    fn spanish_determiner(&self, form: usize, opens: Opening) -> String {
        let form = if opens.stressed_a && form == 1 { 0 } else { form };
        let many = usize::from(form > 1);
        match self.determiner {
            Determiner::None | Determiner::Some => String::new(),
            Determiner::A => ["un", "una", "unos", "unas"][form].to_owned(),
            Determiner::The if form == 0 => format!("{ARTICLE}el"),
            Determiner::The => ["", "la", "los", "las"][form].to_owned(),
            Determiner::My => ["mi", "mis"][many].to_owned(),
            Determiner::Your => ["tu", "tus"][many].to_owned(),
            Determiner::OfHim | Determiner::OfHer => ["su", "sus"][many].to_owned(),
            Determiner::This => ["este", "esta", "estos", "estas"][form].to_owned(),
        }
    }

    fn italian_determiner(&self, form: usize, opens: Opening) -> String {
        let definite = |opens: Opening| {
            let article = match form {
                0 | 1 if opens.vowel => "l'",
                0 if opens.impure => "lo",
                0 => "il",
                1 => "la",
                2 if opens.vowel || opens.impure => "gli",
                2 => "i",
                _ => "le",
            };
            format!("{ARTICLE}{article}")
        };
        let plain = Opening { vowel: false, impure: false, stressed_a: false };
        let owned = |stem: &str, plural: &str| {
            let word =
                [format!("{stem}o"), format!("{stem}a"), format!("{plural}i"), format!("{stem}e")];
            format!("{} {}", definite(plain), word[form])
        };
        match self.determiner {
            Determiner::None => String::new(),
            Determiner::A => match form {
                0 if opens.impure && !opens.vowel => "uno".to_owned(),
                0 => "un".to_owned(),
                1 if opens.vowel => "un'".to_owned(),
                1 => "una".to_owned(),
                _ => format!("di {}", definite(opens)),
            },
            Determiner::The => definite(opens),
            Determiner::Some => format!("di {}", definite(opens)),
            Determiner::My => owned("mi", "mie"),
            Determiner::Your => owned("tu", "tuo"),
            Determiner::OfHim | Determiner::OfHer => owned("su", "suo"),
            Determiner::This => ["questo", "questa", "questi", "queste"][form].to_owned(),
        }
    }

    fn write_german(&self, lexicon: &Lexicon, out: &mut String) {
        let (noun, word, gender) = self.noun(lexicon);
        let column = if self.is_plural() { 3 } else { gender_column(gender) };
        let case = self.case as usize;
        let article = self.german_determiner(case, column);
        out.push_str(&article);
        for adjective in self.adjectives.iter().flatten() {
            if !out.is_empty() && !out.ends_with(' ') {
                out.push(' ');
            }
            let stem = match lexicon.adjectives[*adjective].forms[0].as_str() {
                "dunkel" => "dunkl",
                "hoch" => "hoh",
                other => other.strip_suffix('e').unwrap_or(other),
            };
            out.push_str(stem);
            out.push_str(self.german_adjective_ending(case, column));
        }
        if !out.is_empty() && !out.ends_with(' ') {
            out.push(' ');
        }
        let weak = noun.habit == Habit::Weak && self.case != Case::Nominative;
        let word = if weak && !self.is_plural() { noun.plural.as_str() } else { word };
        out.push_str(word);
        if self.is_plural() && self.case == Case::Dative && !word.ends_with(['n', 's']) {
            out.push('n');
        }
    }

    fn german_determiner(&self, case: usize, column: usize) -> String {
        const DEFINITE: [[&str; 4]; 3] = [
            ["der", "die", "das", "die"],
            ["den", "die", "das", "die"],
            ["dem", "der", "dem", "den"],
        ];
        const THIS: [[&str; 4]; 3] =
            [["er", "e", "es", "e"], ["en", "e", "es", "e"], ["em", "er", "em", "en"]];
        const ONE: [[&str; 4]; 3] =
            [["", "e", "", "e"], ["en", "e", "", "e"], ["em", "er", "em", "en"]];
        let one = ONE[case][column];
        match self.determiner {
            Determiner::None | Determiner::Some => String::new(),
            Determiner::A if column == 3 => String::new(),
            Determiner::A => format!("ein{one}"),
            Determiner::The => format!("{ARTICLE}{}", DEFINITE[case][column]),
            Determiner::My => format!("mein{one}"),
            Determiner::Your => format!("dein{one}"),
            Determiner::OfHim => format!("sein{one}"),
            Determiner::OfHer => format!("ihr{one}"),
            Determiner::This => format!("dies{}", THIS[case][column]),
        }
    }

    fn german_adjective_ending(&self, case: usize, column: usize) -> &'static str {
        const WEAK: [[&str; 4]; 3] =
            [["e", "e", "e", "en"], ["en", "e", "e", "en"], ["en", "en", "en", "en"]];
        const MIXED: [[&str; 4]; 3] =
            [["er", "e", "es", "en"], ["en", "e", "es", "en"], ["en", "en", "en", "en"]];
        const STRONG: [[&str; 4]; 3] =
            [["er", "e", "es", "e"], ["en", "e", "es", "e"], ["em", "er", "em", "en"]];
        match self.determiner {
            Determiner::None | Determiner::Some => STRONG[case][column],
            Determiner::A if column == 3 => STRONG[case][column],
            Determiner::The | Determiner::This => WEAK[case][column],
            _ => MIXED[case][column],
        }
    }
}

/// How the word after a determiner begins.
#[derive(Clone, Copy, Debug)]
struct Opening {
    vowel: bool,
    impure: bool,
    stressed_a: bool,
}

fn gender_column(gender: Gender) -> usize {
    match gender {
        Gender::Masculine => 0,
        Gender::Feminine => 1,
        Gender::Neuter => 2,
    }
}

fn vowel_follows(word: &str, noun: &Noun) -> bool {
    noun.habit != Habit::Aspirate && is_vowel_initial(word)
}

/// True for a vowel or a mute h (in Spanish and English the answer is not used).
pub(super) fn is_vowel_initial(word: &str) -> bool {
    word.chars().next().is_some_and(|c| {
        let c = c.to_lowercase().next().unwrap_or(c);
        "aeiouhéèêàâîïôœûæ".contains(c)
    })
}

/// Italian words that take `lo` and `gli`: s with a consonant, z, gn, ps.
pub(super) fn is_impure_initial(word: &str) -> bool {
    let word = word.to_lowercase();
    let mut letters = word.chars();
    match letters.next() {
        Some('z' | 'y' | 'x') => true,
        Some('s') => letters.next().is_some_and(|c| !"aeiouàèéìòù".contains(c)),
        _ => word.starts_with("gn") || word.starts_with("ps"),
    }
}

fn french_before_vowel(adjective: &str) -> &str {
    match adjective {
        "vieux" => "vieil",
        "beau" => "bel",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::polish::polish;
    use super::*;

    fn phrase(language: Language, noun: &str, adjective: Option<&str>, ask: Phrase) -> String {
        let lexicon = Lexicon::new(language);
        let find = |w: &str| lexicon.nouns.iter().position(|n| n.singular == w).unwrap();
        let find_adjective =
            |w: &str| lexicon.adjectives.iter().position(|a| a.forms[0] == w).unwrap();
        let mut out = String::new();
        Phrase { noun: find(noun), adjectives: [adjective.map(find_adjective), None], ..ask }
            .write(language, &lexicon, &mut out);
        polish(language, &out).to_lowercase()
    }

    const THE: Phrase = Phrase {
        noun: 0,
        adjectives: [None, None],
        determiner: Determiner::The,
        count: Count::Singular,
        case: Case::Nominative,
    };

    #[test]
    fn french_phrases_elide_and_agree() {
        let a = Phrase { determiner: Determiner::A, ..THE };
        assert_eq!(phrase(Language::French, "échelle", Some("vieux"), a), "une vieille échelle");
        assert_eq!(phrase(Language::French, "échelle", None, THE), "l'échelle");
        assert_eq!(phrase(Language::French, "hibou", None, THE), "le hibou");
        let this = Phrase { determiner: Determiner::This, ..THE };
        assert_eq!(phrase(Language::French, "âne", Some("vieux"), this), "ce vieil âne");
        let many = Phrase { count: Count::Plural, ..a };
        assert_eq!(phrase(Language::French, "couteau", Some("petit"), many), "de petits couteaux");
        let his = Phrase { determiner: Determiner::OfHer, ..THE };
        assert_eq!(phrase(Language::French, "échelle", None, his), "son échelle");
    }

    #[test]
    fn german_phrases_follow_the_three_declensions() {
        let dative = Phrase { case: Case::Dative, ..THE };
        assert_eq!(phrase(Language::German, "Bär", Some("alt"), dative), "dem alten bären");
        let a = Phrase { determiner: Determiner::A, ..THE };
        assert_eq!(phrase(Language::German, "Messer", Some("klein"), a), "ein kleines messer");
        let many =
            Phrase { count: Count::Plural, case: Case::Dative, determiner: Determiner::A, ..THE };
        assert_eq!(phrase(Language::German, "Apfel", Some("rot"), many), "roten äpfeln");
    }

    #[test]
    fn italian_and_spanish_articles_follow_the_sound() {
        assert_eq!(phrase(Language::Italian, "specchio", None, THE), "lo specchio");
        let many = Phrase { count: Count::Plural, ..THE };
        assert_eq!(phrase(Language::Italian, "orologio", None, many), "gli orologi");
        assert_eq!(phrase(Language::Italian, "uovo", Some("fresco"), many), "le uova fresche");
        assert_eq!(phrase(Language::Spanish, "águila", None, THE), "el águila");
    }
}
