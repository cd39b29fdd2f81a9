//! Everything the page says, in each of its languages.

use serde::Serialize;

/// A language of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    French,
    English,
}

impl Language {
    /// The language that a tag such as `fr`, `fr-CA` or `en-GB` asks for.
    fn from_tag(tag: &str) -> Option<Self> {
        let primary = tag.split(['-', '_']).next()?.trim();
        if primary.eq_ignore_ascii_case("fr") {
            Some(Self::French)
        } else if primary.eq_ignore_ascii_case("en") {
            Some(Self::English)
        } else {
            None
        }
    }

    /// The choice of the address (`?lang=fr`), else the one the browser likes best, else English.
    pub(crate) fn choose(asked: Option<&str>, accept_language: Option<&str>) -> Self {
        asked
            .and_then(Self::from_tag)
            .or_else(|| accept_language.and_then(Self::liked_best))
            .unwrap_or(Self::English)
    }

    /// The known language with the highest weight in an `Accept-Language` header; of equals the first.
    fn liked_best(header: &str) -> Option<Self> {
        let mut best: Option<(f32, Self)> = None;
        for entry in header.split(',').take(32) {
            let mut parts = entry.split(';');
            let language = parts.next().and_then(|tag| Self::from_tag(tag.trim()));
            let weight = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse().ok());
            let weight: f32 = weight.unwrap_or(1.0);
            if let Some(language) = language
                && weight > best.map_or(0.0, |(weight, _)| weight)
            {
                best = Some((weight, language));
            }
        }
        best.map(|(_, language)| language)
    }

    pub(crate) fn texts(self) -> &'static Texts {
        match self {
            Self::French => &FRENCH,
            Self::English => &ENGLISH,
        }
    }
}

/// The texts of one language. French puts a space that does not break before `?`, `!`, `;` and `:`.
#[derive(Debug, Serialize)]
pub(crate) struct Texts {
    pub(crate) lang: &'static str,
    pub(crate) other_lang: &'static str,
    pub(crate) other_language: &'static str,
    pub(crate) title: &'static str,
    pub(crate) skip: &'static str,
    pub(crate) greeting: &'static str,
    pub(crate) promise: &'static str,
    pub(crate) examples_label: &'static str,
    pub(crate) examples: [&'static str; 3],
    pub(crate) conversation: &'static str,
    pub(crate) prompt_label: &'static str,
    pub(crate) prompt_placeholder: &'static str,
    pub(crate) send: &'static str,
    pub(crate) stop: &'static str,
    pub(crate) new_chat: &'static str,
    pub(crate) model: &'static str,
    pub(crate) you: &'static str,
    pub(crate) keys: &'static str,
    pub(crate) caution: &'static str,
    pub(crate) copy: &'static str,
    pub(crate) copy_answer: &'static str,
    pub(crate) copy_code: &'static str,
    pub(crate) copied: &'static str,
    pub(crate) retry: &'static str,
    pub(crate) to_end: &'static str,
    pub(crate) starting: &'static str,
    pub(crate) starting_hint: &'static str,
    pub(crate) no_model: &'static str,
    pub(crate) no_script: &'static str,
    pub(crate) left_out: &'static str,
    pub(crate) answering: &'static str,
    pub(crate) answered: &'static str,
    pub(crate) stopped: &'static str,
    pub(crate) length: &'static str,
    pub(crate) empty_answer: &'static str,
    pub(crate) error_context: &'static str,
    pub(crate) error_busy: &'static str,
    pub(crate) error_network: &'static str,
    pub(crate) error_other: &'static str,
    pub(crate) tokens: &'static str,
    pub(crate) tokens_per_s: &'static str,
}

const FRENCH: Texts = Texts {
    lang: "fr",
    other_lang: "en",
    other_language: "English",
    title: "Galerne",
    skip: "Aller au message",
    greeting: "Bonjour, que voulez-vous savoir\u{a0}?",
    promise: "Le modèle tourne sur cette machine. Rien de ce que vous écrivez ne la quitte.",
    examples_label: "Exemples",
    examples: [
        "Raconte une courte histoire de mer et de vent.",
        "Combien font 17 et 25\u{a0}?",
        "Pourquoi le ciel est-il bleu\u{a0}?",
    ],
    conversation: "Conversation",
    prompt_label: "Votre message",
    prompt_placeholder: "Écrivez votre message…",
    send: "Envoyer",
    stop: "Arrêter",
    new_chat: "Nouvelle conversation",
    model: "Modèle",
    you: "Vous",
    keys: "Entrée envoie, Maj + Entrée va à la ligne, Échap arrête.",
    caution: "Un modèle peut se tromper\u{a0}: vérifiez ce qui compte.",
    copy: "Copier",
    copy_answer: "Copier la réponse",
    copy_code: "Copier le code",
    copied: "Copié",
    retry: "Recommencer",
    to_end: "Aller à la fin",
    starting: "Le modèle se prépare",
    starting_hint: "La conversation s’ouvrira ici d’elle-même dès qu’il sera prêt.",
    no_model: "Aucun modèle n’est chargé",
    no_script: "Cette page a besoin de JavaScript. L’API répond sans lui, à l’adresse /v1/chat/completions.",
    left_out: "Le modèle ne lit plus ce qui est au-dessus.",
    answering: "La réponse arrive.",
    answered: "La réponse est complète.",
    stopped: "Réponse arrêtée.",
    length: "La réponse a atteint sa longueur maximale.",
    empty_answer: "Le modèle n’a rien répondu.",
    error_context: "Ce message est plus long que ce que le modèle peut lire.",
    error_busy: "Trop de demandes attendent déjà. Recommencez dans un instant.",
    error_network: "Le serveur ne répond pas. Est-il encore en marche\u{a0}?",
    error_other: "La réponse n’a pas pu être calculée.",
    tokens: "tokens",
    tokens_per_s: "tokens/s",
};

const ENGLISH: Texts = Texts {
    lang: "en",
    other_lang: "fr",
    other_language: "Français",
    title: "Galerne",
    skip: "Go to the message",
    greeting: "Hello, what would you like to know?",
    promise: "The model runs on this machine. Nothing you write leaves it.",
    examples_label: "Examples",
    examples: [
        "Tell a short story of sea and wind.",
        "What is 17 plus 25?",
        "Why is the sky blue?",
    ],
    conversation: "Conversation",
    prompt_label: "Your message",
    prompt_placeholder: "Write your message…",
    send: "Send",
    stop: "Stop",
    new_chat: "New chat",
    model: "Model",
    you: "You",
    keys: "Enter sends, Shift + Enter starts a line, Escape stops.",
    caution: "A model can be wrong: check what matters.",
    copy: "Copy",
    copy_answer: "Copy the answer",
    copy_code: "Copy the code",
    copied: "Copied",
    retry: "Try again",
    to_end: "Go to the end",
    starting: "The model is getting ready",
    starting_hint: "The conversation opens here by itself as soon as it is ready.",
    no_model: "No model is loaded",
    no_script: "This page needs JavaScript. The API answers without it, at /v1/chat/completions.",
    left_out: "The model no longer reads what is above.",
    answering: "The answer is coming.",
    answered: "The answer is complete.",
    stopped: "Answer stopped.",
    length: "The answer reached its greatest length.",
    empty_answer: "The model answered nothing.",
    error_context: "This message is longer than the model can read.",
    error_busy: "Too many requests are waiting already. Try again in a moment.",
    error_network: "The server does not answer. Is it still running?",
    error_other: "The answer could not be computed.",
    tokens: "tokens",
    tokens_per_s: "tokens/s",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_wins_over_the_browser_and_weights_count() {
        use Language::{English, French};
        let cases = [
            (Some("fr"), Some("en"), French),
            (Some("de"), Some("fr-CA,en;q=0.5"), French),
            (None, Some("en-GB,en;q=0.9,fr;q=0.8"), English),
            (None, Some("de, fr;q=0.3, en;q=0.7"), English),
            (None, Some("fr;q=0, en;q=0.1"), English),
            (None, Some("de;q=1"), English),
            (None, None, English),
        ];
        for (asked, accept, expected) in cases {
            assert_eq!(Language::choose(asked, accept), expected, "{asked:?} {accept:?}");
        }
    }
}
