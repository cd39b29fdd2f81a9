//! The invented world: towns, people, creatures and herbs with facts that hold in every document.
//!
//! It does not depend on the corpus seed, so the same fact recurs under any seed and in any language.

use super::expand::{Page, Value};
use super::lexicon::{Lexicon, class_index};
use super::names;
use crate::Language;
use crate::random::Random;

const WORLD_SEED: u64 = 0x0067_616C_6572_6E65;
const N_TOWNS: usize = 480;
const N_PEOPLE: usize = 640;
const N_CREATURES: usize = 320;
const N_REGIONS: usize = 24;

#[derive(Debug)]
pub(super) struct Town {
    pub(super) name: String,
    region: usize,
    river: String,
    founded: i64,
    population: i64,
    product: usize,
    trade: usize,
    monument: usize,
    material: usize,
    neighbour: usize,
    distance_km: i64,
    weekday: i64,
    month: i64,
}

#[derive(Debug)]
struct Figure {
    name: String,
    is_woman: bool,
    town: usize,
    trade: usize,
    birth: i64,
    age: i64,
    work: usize,
    work_age: i64,
    teacher: usize,
    companion: usize,
}

#[derive(Debug)]
struct Creature {
    name: String,
    kin: usize,
    habitat: usize,
    food: usize,
    region: usize,
    length_cm: i64,
    lifespan: i64,
    month: i64,
    colour: usize,
}

/// All facts; lexicon indices stand for words, so every language can tell them.
#[derive(Debug)]
pub(super) struct World {
    regions: Vec<String>,
    pub(super) towns: Vec<Town>,
    figures: Vec<Figure>,
    animals: Vec<Creature>,
    herbs: Vec<Creature>,
}

impl World {
    /// Builds the world; the lexicon of any language serves, since indices are shared.
    pub(super) fn new(lexicon: &Lexicon) -> Self {
        let random = &mut Random::new(WORLD_SEED, "world");
        let mut taken = Vec::new();
        let regions = (0..N_REGIONS).map(|_| fresh(random, &mut taken, names::river)).collect();
        let towns = (0..N_TOWNS).map(|_| Self::town(random, lexicon, &mut taken)).collect();
        let figures = (0..N_PEOPLE).map(|i| Self::figure(random, lexicon, &mut taken, i)).collect();
        let creature = |kin: &str, random: &mut Random, taken: &mut Vec<String>| {
            let food = if kin == "animal" { "food" } else { "mass" };
            Creature {
                name: fresh(random, taken, names::creature),
                kin: draw(random, lexicon, kin),
                habitat: draw(random, lexicon, "nature"),
                food: draw(random, lexicon, food),
                region: random.below(N_REGIONS),
                length_cm: random.between(6, 190),
                lifespan: random.between(2, 60),
                month: random.between(0, 11),
                colour: random.below(N_COLOURS),
            }
        };
        let animals = (0..N_CREATURES).map(|_| creature("animal", random, &mut taken)).collect();
        let herbs = (0..N_CREATURES).map(|_| creature("plant", random, &mut taken)).collect();
        Self { regions, towns, figures, animals, herbs }
    }

    fn town(random: &mut Random, lexicon: &Lexicon, taken: &mut Vec<String>) -> Town {
        Town {
            name: fresh(random, taken, names::town),
            region: random.below(N_REGIONS),
            river: names::river(random),
            founded: random.between(1040, 1790),
            population: random.between(310, 48_000),
            product: if random.chance(60) {
                draw(random, lexicon, "food")
            } else {
                draw(random, lexicon, "tool")
            },
            trade: trade(random, lexicon, false),
            monument: draw(random, lexicon, "place"),
            material: draw(random, lexicon, "matter"),
            neighbour: random.below(N_TOWNS),
            distance_km: random.between(6, 140),
            weekday: random.between(0, 6),
            month: random.between(0, 11),
        }
    }

    fn figure(
        random: &mut Random,
        lexicon: &Lexicon,
        taken: &mut Vec<String>,
        index: usize,
    ) -> Figure {
        let is_woman = random.chance(50);
        let language = Language::ALL[random.below(5)];
        let town = random.below(N_TOWNS);
        Figure {
            name: fresh(random, taken, |r| {
                format!("{} {}", names::person(language, r, is_woman), names::family(language, r))
            }),
            is_woman,
            town,
            trade: trade(random, lexicon, is_woman),
            birth: random.between(1480, 1880),
            age: random.between(44, 97),
            work: draw(random, lexicon, "tool"),
            work_age: random.between(19, 43),
            teacher: (index + 1 + random.below(N_PEOPLE - 1)) % N_PEOPLE,
            companion: draw(random, lexicon, "animal"),
        }
    }

    /// Binds the facts of a random town.
    /// T name, R region, V river, Y founded, P people, G product, J trade, M monument, X material,
    /// N neighbour, K distance, W weekday, O month of the fair.
    pub(super) fn bind_town(&self, page: &mut Page<'_>) {
        let town = page.random.pick(&self.towns);
        let neighbour = &self.towns[town.neighbour].name;
        page.set('T', Value::Text(town.name.clone()));
        page.set('R', Value::Text(self.regions[town.region].clone()));
        page.set('V', Value::Text(town.river.clone()));
        page.set('Y', Value::Number(town.founded));
        page.set('P', Value::Number(town.population));
        page.set('G', Value::Noun(town.product, [None, None]));
        page.set('J', Value::Noun(town.trade, [None, None]));
        page.set('M', Value::Noun(town.monument, [None, None]));
        page.set('X', Value::Noun(town.material, [None, None]));
        page.set('N', Value::Text(neighbour.clone()));
        page.set('K', Value::Number(town.distance_km));
        page.set('W', Value::Number(town.weekday));
        page.set('O', Value::Number(town.month));
    }

    /// Binds the facts of a random person of the past.
    /// H the person, T town, R region, J trade, Y birth, Z death, A age at death, G work, B year of
    /// the work, C age then, F teacher, M companion.
    pub(super) fn bind_figure(&self, page: &mut Page<'_>) {
        let figure = page.random.pick(&self.figures);
        let person = |f: &Figure| Value::Person { name: f.name.clone(), is_woman: f.is_woman };
        let town = &self.towns[figure.town];
        page.set('H', person(figure));
        page.set('F', person(&self.figures[figure.teacher]));
        page.set('T', Value::Text(town.name.clone()));
        page.set('R', Value::Text(self.regions[town.region].clone()));
        page.set('J', Value::Noun(figure.trade, [None, None]));
        page.set('Y', Value::Number(figure.birth));
        page.set('Z', Value::Number(figure.birth + figure.age));
        page.set('A', Value::Number(figure.age));
        page.set('G', Value::Noun(figure.work, [None, None]));
        page.set('B', Value::Number(figure.birth + figure.work_age));
        page.set('C', Value::Number(figure.work_age));
        page.set('M', Value::Noun(figure.companion, [None, None]));
    }

    /// Binds the facts of a random animal of the world, see `bind_creature`.
    pub(super) fn bind_animal(&self, page: &mut Page<'_>) {
        self.bind_creature(&self.animals, page);
    }

    /// Binds the facts of a random herb of the world, see `bind_creature`.
    pub(super) fn bind_herb(&self, page: &mut Page<'_>) {
        self.bind_creature(&self.herbs, page);
    }

    /// S name, K kin, N habitat, G what it eats or flavours, R region, L length in cm, A lifespan,
    /// O month, C colour.
    fn bind_creature(&self, creatures: &[Creature], page: &mut Page<'_>) {
        let creature = page.random.pick(creatures);
        page.set('S', Value::Text(creature.name.clone()));
        page.set('K', Value::Noun(creature.kin, [None, None]));
        page.set('N', Value::Noun(creature.habitat, [None, None]));
        page.set('G', Value::Noun(creature.food, [None, None]));
        page.set('R', Value::Text(self.regions[creature.region].clone()));
        page.set('L', Value::Number(creature.length_cm));
        page.set('A', Value::Number(creature.lifespan));
        page.set('O', Value::Number(creature.month));
        page.set('C', Value::Number(creature.colour as i64));
    }
}

/// Colours that creatures have; the words are the lines of the rule `colour_list`.
const N_COLOURS: usize = 12;

fn draw(random: &mut Random, lexicon: &Lexicon, class: &str) -> usize {
    let class = class_index(class).expect("the world names classes that exist");
    let (low, high) = lexicon.ranges[class];
    low + random.below(high - low)
}

/// Trade nouns come in pairs, the man's before the woman's.
fn trade(random: &mut Random, lexicon: &Lexicon, is_woman: bool) -> usize {
    let class = class_index("trade").expect("the noun file has trades");
    let (low, high) = lexicon.ranges[class];
    low + 2 * random.below((high - low) / 2) + usize::from(is_woman)
}

fn fresh(
    random: &mut Random,
    taken: &mut Vec<String>,
    make: impl Fn(&mut Random) -> String,
) -> String {
    loop {
        let name = make(random);
        if !taken.contains(&name) {
            taken.push(name.clone());
            return name;
        }
    }
}
