//! Filling the slots of one dialogue: each is drawn once and keeps its value to the end.

use super::draw::Draw;
use super::script::{Script, unescape};
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
    pub(super) fn new(script: &'a Script, draw: &mut Draw) -> Self {
        let mut filler = Self { script, entries: HashMap::new(), drawn: HashMap::new() };
        let a = draw.between(5, 99);
        let b = draw.between(2, a - 1);
        let (x, y) = (draw.between(2, 10), draw.between(2, 10));
        // Apart enough to stay in order, and from 2 up, when made smaller below.
        let mut triple = [draw.between(2, 32), draw.between(36, 64), draw.between(68, 98)];
        if draw.chance(50) {
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
            ("small", draw.between(2, 12)),
            ("hour", draw.between(7, 11)),
            ("phone", draw.between(1_000, 4_999)),
            ("phoneb", draw.between(5_000, 9_999)),
        ];
        filler.drawn.extend(numbers.map(|(name, n)| (name.to_owned(), n.to_string())));
        // Codes of two different letters, so that no text holds the same code twice.
        for (name, letters) in [("code", b"ABCDEFGHJKL"), ("codeb", b"MNPRSTUVWXZ")] {
            let letter = char::from(*draw.pick(letters));
            let dash = if draw.chance(50) { "-" } else { "" };
            let code = format!("{letter}{dash}{}", draw.between(10, 999));
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
    pub(super) fn fill(&mut self, line: &str, draw: &mut Draw) -> String {
        let mut out = String::new();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('{') {
            let (slot, after) =
                after.split_once('}').unwrap_or_else(|| panic!("open brace in `{line}`"));
            out.push_str(before);
            let value = self.value(slot.trim_start_matches('^'), draw);
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

    fn value(&mut self, slot: &str, draw: &mut Draw) -> String {
        if matches!(slot, "i1" | "i2" | "i3" | "i4") {
            self.draw_items(draw);
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
        let entry = self.entry(name, draw);
        // An entry may hold slots of its own; what it becomes is kept.
        let filled = self.fill(&unescape(entry[form]), draw);
        self.drawn.insert(slot.to_owned(), filled.clone());
        filled
    }

    fn entry(&mut self, name: &str, draw: &mut Draw) -> &'a [&'static str] {
        let (name, entries) = self
            .script
            .slots
            .get_key_value(name)
            .unwrap_or_else(|| panic!("no slot named `{name}`"));
        let entry_idx = *self.entries.entry(*name).or_insert_with(|| draw.below(entries.len()));
        &entries[entry_idx]
    }

    fn draw_items(&mut self, draw: &mut Draw) {
        if self.drawn.contains_key("i1") {
            return;
        }
        let mut items = self.entry("category", draw)[1..].to_vec();
        draw.shuffle(&mut items);
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
    use super::{Draw, Filler, Script};

    #[test]
    fn numbers_of_a_dialogue_fit_each_other() {
        let script = Script::default();
        let mut draw = Draw::new(1, "test");
        for _ in 0..2_000 {
            let mut filler = Filler::new(&script, &mut draw);
            let mut number =
                |slot: &str| filler.value(slot, &mut draw).parse::<usize>().expect("a number");
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
        let mut draw = Draw::new(2, "test");
        for _ in 0..50 {
            let mut filler = Filler::new(&script, &mut draw);
            let line = filler.fill("{pair} {pair2} {^pair} {pair}", &mut draw);
            let expected =
                ["up down Up up", "in out In in", "far plain Far far", "near plain Near near"];
            assert!(expected.contains(&line.as_str()), "{line}");
        }
    }
}
