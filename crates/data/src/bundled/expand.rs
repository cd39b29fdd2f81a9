//! Expanding patterns into text: random choices, variables, and no sentence twice.

use super::grammar::{Grammar, Letter, Node, NounNode, Source};
use super::lexicon::{CLASSES, Gender, Lexicon};
use super::numerals;
use super::phrase::{Count, Determiner, Phrase};
use super::polish::polish;
use super::world::World;
use super::{Seen, names};
use crate::Language;
use crate::random::Random;
use crate::sheet::{sentence_hash, sentences};

/// How often a passage with a used sentence is tried again before its document is given up.
const MAX_TRIES: usize = 8;

/// What a letter stands for in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Person {
        name: String,
        is_woman: bool,
    },
    /// A noun with the adjectives it was given when first described.
    Noun(usize, [Option<usize>; 2]),
    Number(i64),
    Text(String),
}

/// The rules and words of one language.
#[derive(Debug)]
pub(super) struct Author {
    pub(super) language: Language,
    pub(super) grammar: Grammar,
    pub(super) lexicon: Lexicon,
}

/// What one document remembers while it is written.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) random: Random,
    pub(super) values: [Option<Value>; 26],
    world: &'a World,
    used_lines: Vec<u64>,
    hashes: Vec<u64>,
}

impl<'a> Page<'a> {
    pub(super) fn new(random: Random, world: &'a World) -> Self {
        Self {
            random,
            values: [const { None }; 26],
            world,
            used_lines: Vec::new(),
            hashes: Vec::new(),
        }
    }

    /// Binds a letter.
    pub(super) fn set(&mut self, letter: char, value: Value) {
        self.values[letter as usize - 'A' as usize] = Some(value);
    }

    fn value(&self, letter: Letter) -> &Value {
        let name = char::from(b'A' + letter as u8);
        self.values[letter].as_ref().unwrap_or_else(|| panic!("variable {name} is not bound"))
    }
}

impl Author {
    /// Writes the plan `name`; `None` when fresh sentences could not be found.
    pub(super) fn document(
        &self,
        name: &str,
        page: &mut Page<'_>,
        seen: &mut Seen,
    ) -> Option<String> {
        let plan = page.random.pick(&self.grammar.plans[name]).clone();
        page.used_lines = vec![0; self.grammar.rules.len()];
        let mut text = String::new();
        let mut joint = "";
        for step in plan.split_ascii_whitespace() {
            match step {
                "/" => joint = "\n",
                "//" => joint = "\n\n",
                _ => {
                    let (rule, repeats) = repeats(step, &mut page.random);
                    for _ in 0..repeats {
                        let passage = self.passage(rule, page, seen)?;
                        if passage.is_empty() {
                            continue;
                        }
                        if !text.is_empty() {
                            text.push_str(joint);
                        }
                        text.push_str(&passage);
                        if joint != "\n" || repeats == 1 {
                            joint = " ";
                        }
                    }
                }
            }
        }
        seen.claim(&text).then_some(text)
    }

    /// One expansion of a rule, none of whose sentences was written before.
    fn passage(&self, rule: &str, page: &mut Page<'_>, seen: &Seen) -> Option<String> {
        let rule = *self.grammar.names.get(rule).unwrap_or_else(|| panic!("no rule `{rule}`"));
        let values = page.values.clone();
        let known = page.hashes.len();
        for _ in 0..MAX_TRIES {
            let mut raw = String::new();
            self.rule(rule, page, &mut raw);
            let text = polish(self.language, &raw);
            page.hashes.truncate(known);
            let is_fresh = sentences(&text).all(|sentence| {
                let hash = sentence_hash(sentence);
                let is_new = !seen.contains(hash) && !page.hashes.contains(&hash);
                page.hashes.push(hash);
                is_new
            });
            if is_fresh {
                return Some(text);
            }
            page.values.clone_from(&values);
        }
        None
    }

    /// Writes one line of a rule, one that the document has not used if a few draws find it.
    fn rule(&self, rule: usize, page: &mut Page<'_>, out: &mut String) {
        let lines = &self.grammar.rules[rule];
        let mut line = page.random.below(lines.len());
        for _ in 0..4 {
            if line >= 64 || page.used_lines[rule] >> line & 1 == 0 {
                break;
            }
            line = page.random.below(lines.len());
        }
        if line < 64 {
            page.used_lines[rule] |= 1 << line;
        }
        self.nodes(&lines[line], page, out);
    }

    fn nodes(&self, nodes: &[Node], page: &mut Page<'_>, out: &mut String) {
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Choice(all) => {
                    let chosen = page.random.below(all.len());
                    self.nodes(&all[chosen], page, out);
                }
                Node::Rule(rule) => self.rule(*rule, page, out),
                Node::ByGender(letter, forms) => {
                    let form = self.gender_form(page.value(*letter)).min(forms.len() - 1);
                    self.nodes(&forms[form], page, out);
                }
                Node::ByIndex(letter, forms) => match page.value(*letter) {
                    Value::Number(n) => {
                        let index = usize::try_from(*n).expect("an index is not negative");
                        self.nodes(&forms[index], page, out);
                    }
                    other => panic!("a number was expected, got {other:?}"),
                },
                Node::Noun(noun) => self.noun(noun, page, out),
                _ => self.leaf(node, page, out),
            }
        }
    }

    fn leaf(&self, node: &Node, page: &mut Page<'_>, out: &mut String) {
        let (value, bind, is_silent, spelled) = match node {
            Node::Value(letter) | Node::Digits(letter) => {
                (page.value(*letter).clone(), None, false, false)
            }
            Node::Words(letter) => (page.value(*letter).clone(), None, false, true),
            Node::Range { low, high, spelled, bind, is_silent } => {
                let mut n = page.random.between(*low, *high);
                // "One" at the end would have to agree with a noun in the Romance languages.
                if *spelled && n % 10 == 1 && n > 11 {
                    n += 1;
                }
                (Value::Number(n), *bind, *is_silent, *spelled)
            }
            Node::Person { is_woman, has_family, bind, is_silent } => {
                let is_woman = is_woman.unwrap_or_else(|| page.random.chance(50));
                // People who are met once have a family name more often than not.
                let has_family = *has_family && page.random.chance(85);
                (self.new_person(page, is_woman, has_family), *bind, *is_silent, false)
            }
            Node::Town { bind, is_silent } => {
                let world = page.world;
                let town = if page.random.chance(30) {
                    page.random.pick(&world.towns).name.clone()
                } else {
                    names::village(&mut page.random)
                };
                (Value::Text(town), *bind, *is_silent, false)
            }
            _ => return,
        };
        if !is_silent {
            match &value {
                Value::Text(name) if self.language == Language::German => {
                    let first = name.chars().next().map_or(0, char::len_utf8);
                    out.push_str(&name[..first].to_uppercase());
                    out.push_str(&name[first..]);
                }
                Value::Person { name, .. } | Value::Text(name) => out.push_str(name),
                Value::Number(n) if spelled => out.push_str(&numerals::words(self.language, *n)),
                Value::Number(n) => out.push_str(&n.to_string()),
                Value::Noun(noun, _) => out.push_str(&self.lexicon.nouns[*noun].singular),
            }
        }
        if let Some(letter) = bind {
            page.values[letter] = Some(value);
        }
    }

    /// A name that no one in the document bears.
    fn new_person(&self, page: &mut Page<'_>, is_woman: bool, has_family: bool) -> Value {
        loop {
            let mut name = names::person(self.language, &mut page.random, is_woman);
            if has_family {
                name.push(' ');
                name.push_str(&names::family(self.language, &mut page.random));
            }
            let is_taken =
                page.values.iter().flatten().any(
                    |value| matches!(value, Value::Person { name: other, .. } if *other == name),
                );
            if !is_taken {
                return Value::Person { name, is_woman };
            }
        }
    }

    fn gender_form(&self, value: &Value) -> usize {
        match value {
            Value::Person { is_woman, .. } => usize::from(*is_woman),
            Value::Noun(noun, _) => self.lexicon.nouns[*noun].gender as usize,
            Value::Number(n) => usize::from(*n != 1),
            Value::Text(_) => 0,
        }
    }

    fn noun(&self, node: &NounNode, page: &mut Page<'_>, out: &mut String) {
        let (noun, known, letter) = match &node.source {
            Source::Bound(letter) => match page.value(*letter) {
                Value::Noun(noun, adjectives) => (*noun, *adjectives, Some(*letter)),
                other => panic!("a noun was expected, got {other:?}"),
            },
            Source::Classes(classes) => {
                (self.draw(*page.random.pick(classes), node, page), [None, None], node.bind)
            }
        };
        // A thing keeps its adjectives in a document; they are repeated only where some are asked for.
        let mut adjectives = [None, None];
        if node.adjective_chance > 0 {
            adjectives = known;
            if adjectives[0].is_none() {
                adjectives = self.adjectives(noun, node.adjective_chance, &mut page.random);
            }
        }
        if let Some(letter) = letter {
            let kept = if adjectives[0].is_some() { adjectives } else { known };
            page.values[letter] = Some(Value::Noun(noun, kept));
        }
        if node.is_silent {
            return;
        }
        let owner = node.owner.unwrap_or(7);
        let determiner = match (node.determiner, &page.values[owner]) {
            (Determiner::OfHim, Some(Value::Person { is_woman: true, .. })) => Determiner::OfHer,
            (other, _) => other,
        };
        let phrase = Phrase { noun, adjectives, determiner, count: node.count, case: node.case };
        phrase.write(self.language, &self.lexicon, out);
        if letter.is_none() && node.owner.is_none() && node.adjective_chance > 0 {
            self.complement(&phrase, page, out);
        }
    }

    /// Sometimes names a tradesperson or the owner of a place.
    fn complement(&self, phrase: &Phrase, page: &mut Page<'_>, out: &mut String) {
        let class = CLASSES[self.lexicon.nouns[phrase.noun].class].0;
        if phrase.count == Count::Plural {
            return;
        }
        let (chance, connectors) = match (class, phrase.determiner) {
            ("trade", Determiner::A) => {
                (40, ["du nom de", "named", "namens", "de nombre", "di nome"])
            }
            ("place", Determiner::The) => (48, ["de", "of", "von", "de", "di"]),
            _ => return,
        };
        if !page.random.chance(chance) {
            return;
        }
        let is_woman = match class {
            "trade" => self.lexicon.nouns[phrase.noun].gender == Gender::Feminine,
            _ => page.random.chance(50),
        };
        let Value::Person { name, .. } = self.new_person(page, is_woman, true) else { return };
        out.push(' ');
        out.push_str(connectors[self.language as usize]);
        out.push(' ');
        out.push_str(&name);
    }

    /// A noun of the class; in a pair of trade nouns, the one of the right gender.
    fn draw(&self, class: usize, node: &NounNode, page: &mut Page<'_>) -> usize {
        let (low, high) = self.lexicon.ranges[class];
        let noun = low + page.random.below(high - low);
        if CLASSES[class].0 != "trade" {
            return noun;
        }
        let is_woman = match node.owner.and_then(|o| page.values[o].as_ref()) {
            Some(Value::Person { is_woman, .. }) => *is_woman,
            _ => (noun - low) % 2 == 1,
        };
        noun - (noun - low) % 2 + usize::from(is_woman)
    }

    /// Up to two adjectives: the second only where one stands before and one after the noun.
    fn adjectives(&self, noun: usize, chance: usize, random: &mut Random) -> [Option<usize>; 2] {
        let fitting = &self.lexicon.fitting[self.lexicon.nouns[noun].class];
        if fitting.is_empty() || !random.chance(chance) {
            return [None, None];
        }
        let first = *random.pick(fitting);
        let second = *random.pick(fitting);
        let both =
            self.lexicon.adjectives[first].precedes && !self.lexicon.adjectives[second].precedes;
        [Some(first), both.then_some(second)]
    }
}

/// Splits `rule*2-4` and `rule?`.
fn repeats<'a>(step: &'a str, random: &mut Random) -> (&'a str, i64) {
    if let Some(rule) = step.strip_suffix('?') {
        return (rule, random.between(0, 1));
    }
    let Some((rule, range)) = step.split_once('*') else { return (step, 1) };
    let (low, high) = range.split_once('-').unwrap_or((range, range));
    let bound = |s: &str| s.parse().unwrap_or_else(|_| panic!("bad repeat in plan step `{step}`"));
    (rule, random.between(bound(low), bound(high)))
}
