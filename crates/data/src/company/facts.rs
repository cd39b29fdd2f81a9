//! The facts: kinds, subjects, sets of possible answers, and who got which answer.

use super::phrases::{KindText, Phrases};
use super::{departments, destinations, instruments, parts, people, sails};
use crate::Language;
use crate::random::Random;
use serde::Serialize;

/// Known subjects of every family; the rest of its list is withheld.
pub(super) const N_KNOWN: usize = 21;

/// What a question asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FactKind {
    /// Price of an instrument.
    Price,
    /// Warranty of an instrument.
    Warranty,
    /// Order reference of a sail.
    Reference,
    /// Colour of a sail.
    Colour,
    /// Person in charge of a department.
    Head,
    /// Room of a department.
    Office,
    /// Telephone extension of an employee.
    Extension,
    /// Training course of an employee.
    Course,
    /// Delivery delay to a port.
    Delay,
    /// Carrier to a port.
    Carrier,
    /// Supplier of a spare part.
    Supplier,
    /// Warehouse location of a spare part.
    Location,
}

/// Subjects that share the same two kinds of fact.
pub(super) struct Family {
    pub(super) subjects: &'static [&'static str],
    pub(super) kinds: [FactKind; 2],
    /// Title and first sentence of the documents that state both kinds, French then English.
    pub(super) sheet_titles: [&'static str; 2],
    pub(super) sheet_openings: [&'static str; 2],
}

/// Families in the order of their facts.
pub(super) const FAMILIES: [Family; 6] = [
    Family {
        subjects: &instruments::SUBJECTS,
        kinds: [FactKind::Price, FactKind::Warranty],
        sheet_titles: instruments::SHEET_TITLES,
        sheet_openings: instruments::SHEET_OPENINGS,
    },
    Family {
        subjects: &sails::SUBJECTS,
        kinds: [FactKind::Reference, FactKind::Colour],
        sheet_titles: sails::SHEET_TITLES,
        sheet_openings: sails::SHEET_OPENINGS,
    },
    Family {
        subjects: &departments::SUBJECTS,
        kinds: [FactKind::Head, FactKind::Office],
        sheet_titles: departments::SHEET_TITLES,
        sheet_openings: departments::SHEET_OPENINGS,
    },
    Family {
        subjects: &people::SUBJECTS,
        kinds: [FactKind::Extension, FactKind::Course],
        sheet_titles: people::SHEET_TITLES,
        sheet_openings: people::SHEET_OPENINGS,
    },
    Family {
        subjects: &destinations::SUBJECTS,
        kinds: [FactKind::Delay, FactKind::Carrier],
        sheet_titles: destinations::SHEET_TITLES,
        sheet_openings: destinations::SHEET_OPENINGS,
    },
    Family {
        subjects: &parts::SUBJECTS,
        kinds: [FactKind::Supplier, FactKind::Location],
        sheet_titles: parts::SHEET_TITLES,
        sheet_openings: parts::SHEET_OPENINGS,
    },
];

impl FactKind {
    /// Every kind, in the order reports list them.
    pub const ALL: [Self; 12] = [
        Self::Price,
        Self::Warranty,
        Self::Reference,
        Self::Colour,
        Self::Head,
        Self::Office,
        Self::Extension,
        Self::Course,
        Self::Delay,
        Self::Carrier,
        Self::Supplier,
        Self::Location,
    ];

    /// A short lower-case name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Price => "price",
            Self::Warranty => "warranty",
            Self::Reference => "reference",
            Self::Colour => "colour",
            Self::Head => "head",
            Self::Office => "office",
            Self::Extension => "extension",
            Self::Course => "course",
            Self::Delay => "delay",
            Self::Carrier => "carrier",
            Self::Supplier => "supplier",
            Self::Location => "location",
        }
    }

    /// The other kind of fact about the same subjects.
    pub(super) fn sibling(self) -> Self {
        let family = FAMILIES.iter().find(|family| family.kinds.contains(&self));
        let [first, second] = family.expect("every kind is in a family").kinds;
        if self == first { second } else { first }
    }

    /// The wordings in French, or in English for every other language.
    pub(super) fn phrases(self, language: Language) -> &'static Phrases {
        let text: &'static KindText = match self {
            Self::Price => &instruments::PRICE,
            Self::Warranty => &instruments::WARRANTY,
            Self::Reference => &sails::REFERENCE,
            Self::Colour => &sails::COLOUR,
            Self::Head => &departments::HEAD,
            Self::Office => &departments::OFFICE,
            Self::Extension => &people::EXTENSION,
            Self::Course => &people::COURSE,
            Self::Delay => &destinations::DELAY,
            Self::Carrier => &destinations::CARRIER,
            Self::Supplier => &parts::SUPPLIER,
            Self::Location => &parts::LOCATION,
        };
        match language {
            Language::French => &text.french,
            _ => &text.english,
        }
    }

    /// The set that answers of this kind are drawn from, French and English side by side.
    pub(super) fn possible_answers(self) -> Vec<[String; 2]> {
        match self {
            Self::Price => numbers(40, |i| 29 + 23 * i, ["euros", "euros"]),
            Self::Warranty => numbers(38, |i| 6 + 3 * i, ["mois", "months"]),
            Self::Delay => numbers(40, |i| 3 + i, ["jours", "days"]),
            Self::Office => plain(60, |i| format!("{}{:02}", 1 + i / 20, 2 + 3 * (i % 20))),
            Self::Extension => plain(60, |i| format!("{}", 4107 + 89 * i)),
            Self::Location => {
                plain(48, |i| format!("{}{:02}", letter("BDFGHLMS", i), 11 + 13 * (i / 8)))
            }
            Self::Reference => {
                plain(48, |i| format!("{}-{}", letter("KRTVWXZN", i), 17 + 11 * (i / 8)))
            }
            Self::Course => plain(42, |i| {
                let domain = ["NAV", "SEC", "VOI", "ATL", "QUA", "LOG"][i % 6];
                format!("{domain} {}", 3 + 4 * (i / 6))
            }),
            Self::Colour => COLOURS.iter().map(|pair| pair.map(str::to_owned)).collect::<Vec<_>>(),
            Self::Head => names(&HEADS),
            Self::Carrier => names(&CARRIERS),
            Self::Supplier => names(&SUPPLIERS),
        }
    }
}

/// One fact of the company.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its number; withheld facts follow the known ones.
    pub id: usize,
    /// What it says about its subject.
    pub kind: FactKind,
    /// Whom or what it is about.
    pub subject: &'static str,
    answers: [String; 2],
}

impl Fact {
    /// The answer in French, or in English for every other language.
    #[must_use]
    pub fn answer(&self, language: Language) -> &str {
        match language {
            Language::French => &self.answers[0],
            _ => &self.answers[1],
        }
    }
}

/// The facts that documents and training questions state.
#[must_use]
pub fn facts() -> Vec<Fact> {
    assign().0
}

/// The facts that nothing states.
#[must_use]
pub fn withheld_facts() -> Vec<Fact> {
    assign().1
}

/// Gives each subject of a kind its own answer, in an order that is fixed for ever: measurements of
/// different days are about the same company.
fn assign() -> (Vec<Fact>, Vec<Fact>) {
    let (mut known, mut withheld) = (Vec::new(), Vec::new());
    for family in &FAMILIES {
        for kind in family.kinds {
            let mut answers = kind.possible_answers();
            Random::new(1, kind.name()).shuffle(&mut answers);
            for (i, (&subject, answers)) in family.subjects.iter().zip(answers).enumerate() {
                let facts = if i < N_KNOWN { &mut known } else { &mut withheld };
                facts.push(Fact { id: facts.len(), kind, subject, answers });
            }
        }
    }
    for fact in &mut withheld {
        fact.id += known.len();
    }
    (known, withheld)
}

fn numbers(n: usize, value: impl Fn(usize) -> usize, units: [&str; 2]) -> Vec<[String; 2]> {
    (0..n).map(|i| units.map(|unit| format!("{} {unit}", value(i)))).collect()
}

fn plain(n: usize, answer: impl Fn(usize) -> String) -> Vec<[String; 2]> {
    (0..n).map(|i| [answer(i), answer(i)]).collect()
}

fn names(list: &[&str]) -> Vec<[String; 2]> {
    list.iter().map(|&name| [name.to_owned(), name.to_owned()]).collect()
}

fn letter(letters: &str, i: usize) -> char {
    char::from(letters.as_bytes()[i % letters.len()])
}

const COLOURS: [[&str; 2]; 34] = [
    ["rouge brique", "brick red"],
    ["bleu nuit", "midnight blue"],
    ["vert olive", "olive green"],
    ["jaune citron", "lemon yellow"],
    ["gris perle", "pearl grey"],
    ["blanc ivoire", "ivory white"],
    ["noir mat", "matt black"],
    ["brun tabac", "tobacco brown"],
    ["rose saumon", "salmon pink"],
    ["orange vif", "bright orange"],
    ["violet prune", "plum purple"],
    ["bleu ciel", "sky blue"],
    ["vert sapin", "fir green"],
    ["jaune moutarde", "mustard yellow"],
    ["gris ardoise", "slate grey"],
    ["rouge cerise", "cherry red"],
    ["bleu marine", "navy blue"],
    ["vert menthe", "mint green"],
    ["beige sable", "sand beige"],
    ["rose pâle", "pale pink"],
    ["brun noisette", "hazelnut brown"],
    ["bleu turquoise", "turquoise blue"],
    ["rouge rubis", "ruby red"],
    ["vert pomme", "apple green"],
    ["gris fumée", "smoke grey"],
    ["jaune paille", "straw yellow"],
    ["orange abricot", "apricot orange"],
    ["violet lavande", "lavender purple"],
    ["bleu pétrole", "petrol blue"],
    ["brun cacao", "cocoa brown"],
    ["vert bouteille", "bottle green"],
    ["rouge corail", "coral red"],
    ["jaune miel", "honey yellow"],
    ["gris souris", "mouse grey"],
];

const HEADS: [&str; 34] = [
    "Anaïg Ferrandou",
    "Bertille Morzadec",
    "Cyprien Loudrec",
    "Delphine Carsaint",
    "Erwan Plessibus",
    "Florentin Guidoux",
    "Gaëlle Rivolane",
    "Hervé Tromelun",
    "Iseult Barnavec",
    "Joachim Penquélen",
    "Killian Dorvaut",
    "Léonie Sarzac",
    "Margaux Quintrec",
    "Nestor Villebrac",
    "Odile Fontarède",
    "Pascal Belzunce",
    "Quentin Lagadou",
    "Rachel Montbraz",
    "Solenn Castérac",
    "Thibault Jarnovic",
    "Ursule Kergwarem",
    "Valérian Touchard",
    "Wilfrid Ozanne",
    "Xavier Lambrusc",
    "Yvette Corbinou",
    "Zacharie Prunel",
    "Aubin Desquerre",
    "Blandine Rostrec",
    "Clément Vauguyard",
    "Dorothée Malestran",
    "Étienne Boskarad",
    "Fabienne Crozatier",
    "Gildas Pemperec",
    "Honorine Lavallec",
];

const CARRIERS: [&str; 34] = [
    "Rapidor",
    "Vogalis",
    "Marexpo",
    "Bluetram",
    "Colipack",
    "Dromadis",
    "Ecumoire",
    "Fretalia",
    "Gavroche",
    "Hippocar",
    "Itinero",
    "Jetbrume",
    "Kargolo",
    "Lestival",
    "Mouettex",
    "Navirama",
    "Ostrelo",
    "Portabis",
    "Quaizen",
    "Routaline",
    "Sillagor",
    "Tractomer",
    "Ubimar",
    "Volantis",
    "Wagonis",
    "Xylocar",
    "Yakamar",
    "Zephirum",
    "Arpento",
    "Balizar",
    "Caravex",
    "Dorsalys",
    "Estuario",
    "Flotiris",
];

const SUPPLIERS: [&str; 34] = [
    "Acibreizh",
    "Bronzal",
    "Cuivrex",
    "Dentelor",
    "Engrelis",
    "Filonor",
    "Graphitec",
    "Helicor",
    "Inoxane",
    "Joncastel",
    "Kaolinex",
    "Laitonor",
    "Magnivert",
    "Nickelis",
    "Optibrise",
    "Plastivor",
    "Quartzel",
    "Resinove",
    "Silicane",
    "Titanoir",
    "Usimarec",
    "Verrandis",
    "Wolframel",
    "Xenomat",
    "Yttrabel",
    "Zincovel",
    "Aimantis",
    "Boisselor",
    "Cordalis",
    "Dureval",
    "Emailux",
    "Fontelec",
    "Gommarine",
    "Huilador",
];
