//! Filling the slots of one dialogue: each is drawn once and keeps its value to the end.

use super::script::{Script, unescape};
use crate::random::Random;
use std::collections::HashMap;

/// The values drawn for one dialogue.
pub(super) struct Filler<'a> {
    script: &'a Script,
    entries: HashMap<&'a str, usize>,
    /// Numbers, codes and list items, by slot name.
    drawn: HashMap<String, String>,
}

impl<'a> Filler<'a> {
    /// Draws the numbers; words are drawn when a line asks for them.
    pub(super) fn new(script: &'a Script, random: &mut Random) -> Self {
        let mut filler = Self { script, entries: HashMap::new(), drawn: HashMap::new() };
        let a = random.between(5, 99);
        let b = random.between(2, a - 1);
        let (x, y) = (random.between(2, 10), random.between(2, 10));
        // Apart enough to stay in order, and from 2 up, when made smaller below.
        let mut triple = [random.between(2, 32), random.between(36, 64), random.between(68, 98)];
        if random.chance(50) {
            triple = triple.map(|n| n / 3 + 2);
        }
        let numbers = [
            ("a", a),
            ("b", b),
            ("sum", a + b),
            ("difference", a - b),
            ("double", 2 * a),
            ("next", a + 1),
            ("previous", a - 1),
            ("x", x),
            ("y", y),
            ("product", x * y),
            ("low", triple[0]),
            ("mid", triple[1]),
            ("high", triple[2]),
            ("small", random.between(2, 12)),
            ("hour", random.between(7, 11)),
            ("phone", random.between(1_000, 4_999)),
            ("phoneb", random.between(5_000, 9_999)),
        ];
        filler.drawn.extend(numbers.map(|(name, n)| (name.to_owned(), n.to_string())));
        // Codes of two different letters, so that no text holds the same code twice.
        for (name, letters) in [("code", b"ABCDEFGHJKL"), ("codeb", b"MNPRSTUVWXZ")] {
            let letter = char::from(*random.pick(letters));
            let dash = if random.chance(50) { "-" } else { "" };
            let code = format!("{letter}{dash}{}", random.between(10, 999));
            filler.drawn.insert(name.to_owned(), code);
        }
        filler
    }

    /// The line with every `{slot}` replaced. `{name}` is the first form of an entry, `{name2}` its
    /// second, and so on; `{i1}` to `{i4}` are different items of the category; `{^name}` starts
    /// with a capital letter.
    ///
    /// # Panics
    /// When the line names a slot that its language does not have.
    pub(super) fn fill(&mut self, line: &str, random: &mut Random) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) =
                after.split_once('}').unwrap_or_else(|| panic!("open brace in `{line}`"));
            out.push_str(before);
            let value = self.value(slot.trim_start_matches('^'), random);
            if slot.starts_with('^') {
                out.push_str(&capitalised(&value));
            } else {
                out.push_str(&value);
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn value(&mut self, slot: &str, random: &mut Random) -> String {
        if matches!(slot, "i1" | "i2" | "i3" | "i4") {
            self.draw_items(random);
        }
        if let Some(value) = self.drawn.get(slot) {
            return value.clone();
        }
        let (name, form) = match slot.strip_suffix(|c: char| c.is_ascii_digit()) {
            Some(name) if !self.script.slots.contains_key(slot) => {
                (name, usize::from(slot.as_bytes()[slot.len() - 1] - b'1'))
            }
            _ => (slot, 0),
        };
        let entry = self.entry(name, random);
        // An entry may hold slots of its own; what it becomes is kept.
        let filled = self.fill(&unescape(entry[form]), random);
        self.drawn.insert(slot.to_owned(), filled.clone());
        filled
    }

    fn entry(&mut self, name: &str, random: &mut Random) -> &'a [&'static str] {
        let (name, entries) = self
            .script
            .slots
            .get_key_value(name)
            .unwrap_or_else(|| panic!("no slot named `{name}`"));
        let entry_idx = *self.entries.entry(*name).or_insert_with(|| random.below(entries.len()));
        &entries[entry_idx]
    }

    fn draw_items(&mut self, random: &mut Random) {
        if self.drawn.contains_key("i1") {
            return;
        }
        let mut items = self.entry("category", random)[1..].to_vec();
        random.shuffle(&mut items);
        for (i, item) in items.iter().take(4).enumerate() {
            self.drawn.insert(format!("i{}", i + 1), (*item).to_owned());
        }
    }
}

/// The text with its first letter in upper case.
pub(super) fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::{Filler, Random, Script};

    #[test]
    fn numbers_of_a_dialogue_fit_each_other() {
        let script = Script::default();
        let mut random = Random::new(1, "test");
        for _ in 0..2_000 {
            let mut filler = Filler::new(&script, &mut random);
            let mut number =
                |slot: &str| filler.value(slot, &mut random).parse::<usize>().expect("a number");
            let [a, b, low, mid, high] = ["a", "b", "low", "mid", "high"].map(&mut number);
            assert!(2 <= b && b < a, "{b} {a}");
            assert!(2 <= low && low < mid && mid < high, "{low} {mid} {high}");
            assert_eq!(number("sum"), a + b);
            assert_eq!(number("difference"), a - b);
            assert_eq!(number("product"), number("x") * number("y"));
            assert_eq!(
                [number("double"), number("next"), number("previous")],
                [2 * a, a + 1, a - 1]
            );
        }
    }

    #[test]
    fn a_slot_keeps_its_value_and_its_forms_belong_together() {
        let script =
            Script::parse("slot pair\nup|down; in|out; {deep}|plain\n\nslot deep\nfar; near");
        let mut random = Random::new(2, "test");
        for _ in 0..50 {
            let mut filler = Filler::new(&script, &mut random);
            let line = filler.fill("{pair} {pair2} {^pair} {pair}", &mut random);
            let expected =
                ["up down Up up", "in out In in", "far plain Far far", "near plain Near near"];
            assert!(expected.contains(&line.as_str()), "{line}");
        }
    }
}
