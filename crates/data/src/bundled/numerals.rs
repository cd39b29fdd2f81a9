//! Whole numbers from 0 to 9,999 in words.

use crate::Language;

/// Writes `n` in words. Panics outside `0..10_000`.
pub(super) fn words(language: Language, n: i64) -> String {
    assert!((0..10_000).contains(&n), "{n} has no words here, expected 0 to 9999");
    let n = usize::try_from(n).expect("the range was checked");
    match language {
        Language::French => french(n),
        Language::English => english(n),
        Language::German => german(n),
        Language::Spanish => spanish(n),
        Language::Italian => italian(n),
    }
}

fn french(n: usize) -> String {
    const SMALL: [&str; 17] = [
        "zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix",
        "onze", "douze", "treize", "quatorze", "quinze", "seize",
    ];
    const TENS: [&str; 7] = ["", "", "vingt", "trente", "quarante", "cinquante", "soixante"];
    match n {
        0..=16 => SMALL[n].to_owned(),
        17..=19 => format!("dix-{}", SMALL[n - 10]),
        80 => "quatre-vingts".to_owned(),
        20..=69 => match n % 10 {
            0 => TENS[n / 10].to_owned(),
            1 => format!("{} et un", TENS[n / 10]),
            unit => format!("{}-{}", TENS[n / 10], SMALL[unit]),
        },
        71 => "soixante et onze".to_owned(),
        70..=79 => format!("soixante-{}", french(n - 60)),
        81..=99 => format!("quatre-vingt-{}", french(n - 80)),
        100..=999 => {
            let head = match n / 100 {
                1 => "cent".to_owned(),
                h if n.is_multiple_of(100) => return format!("{} cents", SMALL[h]),
                h => format!("{} cent", SMALL[h]),
            };
            join(&head, " ", n % 100, french)
        }
        _ => {
            let head = if n / 1000 == 1 {
                "mille".to_owned()
            } else {
                format!("{} mille", SMALL[n / 1000])
            };
            join(&head, " ", n % 1000, french)
        }
    }
}

fn english(n: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] =
        ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    match n {
        0..=19 => SMALL[n].to_owned(),
        20..=99 => join(TENS[n / 10], "-", n % 10, english),
        100..=999 => join(&format!("{} hundred", SMALL[n / 100]), " and ", n % 100, english),
        _ => {
            let joint = if n % 1000 < 100 { " and " } else { " " };
            join(&format!("{} thousand", SMALL[n / 1000]), joint, n % 1000, english)
        }
    }
}

fn german(n: usize) -> String {
    const SMALL: [&str; 20] = [
        "null",
        "eins",
        "zwei",
        "drei",
        "vier",
        "fünf",
        "sechs",
        "sieben",
        "acht",
        "neun",
        "zehn",
        "elf",
        "zwölf",
        "dreizehn",
        "vierzehn",
        "fünfzehn",
        "sechzehn",
        "siebzehn",
        "achtzehn",
        "neunzehn",
    ];
    const TENS: [&str; 10] = [
        "", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig",
        "neunzig",
    ];
    let unit = |u: usize| if u == 1 { "ein" } else { SMALL[u] };
    match n {
        0..=19 => SMALL[n].to_owned(),
        20..=99 if n.is_multiple_of(10) => TENS[n / 10].to_owned(),
        20..=99 => format!("{}und{}", unit(n % 10), TENS[n / 10]),
        100..=999 => join(&format!("{}hundert", unit(n / 100)), "", n % 100, german),
        _ => join(&format!("{}tausend", unit(n / 1000)), "", n % 1000, german),
    }
}

fn spanish(n: usize) -> String {
    const SMALL: [&str; 30] = [
        "cero",
        "uno",
        "dos",
        "tres",
        "cuatro",
        "cinco",
        "seis",
        "siete",
        "ocho",
        "nueve",
        "diez",
        "once",
        "doce",
        "trece",
        "catorce",
        "quince",
        "dieciséis",
        "diecisiete",
        "dieciocho",
        "diecinueve",
        "veinte",
        "veintiuno",
        "veintidós",
        "veintitrés",
        "veinticuatro",
        "veinticinco",
        "veintiséis",
        "veintisiete",
        "veintiocho",
        "veintinueve",
    ];
    const TENS: [&str; 10] = [
        "",
        "",
        "",
        "treinta",
        "cuarenta",
        "cincuenta",
        "sesenta",
        "setenta",
        "ochenta",
        "noventa",
    ];
    const HUNDREDS: [&str; 10] = [
        "",
        "ciento",
        "doscientos",
        "trescientos",
        "cuatrocientos",
        "quinientos",
        "seiscientos",
        "setecientos",
        "ochocientos",
        "novecientos",
    ];
    match n {
        0..=29 => SMALL[n].to_owned(),
        30..=99 => join(TENS[n / 10], " y ", n % 10, spanish),
        100 => "cien".to_owned(),
        101..=999 => join(HUNDREDS[n / 100], " ", n % 100, spanish),
        1000..=1999 => join("mil", " ", n % 1000, spanish),
        _ => join(&format!("{} mil", SMALL[n / 1000]), " ", n % 1000, spanish),
    }
}

fn italian(n: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "uno",
        "due",
        "tre",
        "quattro",
        "cinque",
        "sei",
        "sette",
        "otto",
        "nove",
        "dieci",
        "undici",
        "dodici",
        "tredici",
        "quattordici",
        "quindici",
        "sedici",
        "diciassette",
        "diciotto",
        "diciannove",
    ];
    const TENS: [&str; 10] = [
        "",
        "",
        "venti",
        "trenta",
        "quaranta",
        "cinquanta",
        "sessanta",
        "settanta",
        "ottanta",
        "novanta",
    ];
    match n {
        0..=19 => SMALL[n].to_owned(),
        20..=99 => match n % 10 {
            0 => TENS[n / 10].to_owned(),
            // The vowel falls before uno and otto, and a final tre takes an accent.
            unit @ (1 | 8) => format!("{}{}", &TENS[n / 10][..TENS[n / 10].len() - 1], SMALL[unit]),
            3 => format!("{}tré", TENS[n / 10]),
            unit => format!("{}{}", TENS[n / 10], SMALL[unit]),
        },
        100..=199 => join("cento", "", n % 100, italian),
        200..=999 => join(&format!("{}cento", SMALL[n / 100]), "", n % 100, italian),
        1000..=1999 => join("mille", "", n % 1000, italian),
        _ => join(&format!("{}mila", SMALL[n / 1000]), "", n % 1000, italian),
    }
}

fn join(head: &str, joint: &str, rest: usize, say: fn(usize) -> String) -> String {
    if rest == 0 { head.to_owned() } else { format!("{head}{joint}{}", say(rest)) }
}

#[cfg(test)]
mod tests {
    use super::words;
    use crate::Language;

    #[test]
    fn irregular_numbers_are_spelled_right() {
        let cases = [
            (Language::French, 71, "soixante et onze"),
            (Language::French, 80, "quatre-vingts"),
            (Language::French, 97, "quatre-vingt-dix-sept"),
            (Language::French, 1200, "mille deux cents"),
            (Language::English, 1042, "one thousand and forty-two"),
            (Language::English, 230, "two hundred and thirty"),
            (Language::German, 121, "einhunderteinundzwanzig"),
            (Language::Spanish, 555, "quinientos cincuenta y cinco"),
            (Language::Italian, 28, "ventotto"),
            (Language::Italian, 243, "duecentoquarantatré"),
        ];
        for (language, n, expected) in cases {
            assert_eq!(words(language, n), expected);
        }
    }
}
