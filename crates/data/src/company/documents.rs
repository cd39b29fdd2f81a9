//! The company's documents: price lists, directories, handbooks and sheets that state the facts.

use super::LANGUAGES;
use super::facts::{FAMILIES, Fact, Family, N_KNOWN, facts};
use super::phrases::fill;
use crate::random::Random;
use crate::{Document, Language};

/// Facts stated on one page.
const FACTS_PER_PAGE: usize = 7;
/// Subjects described on one sheet, two facts each.
const SUBJECTS_PER_SHEET: usize = 4;

/// Every document of the company, in a fixed order.
///
/// Each known fact is stated in four different sentences per language: once in each of the three
/// editions that list its kind, and once on the sheet of its subject. Withheld subjects are never
/// named.
#[must_use]
pub fn documents() -> Vec<Document> {
    let known = facts();
    let mut documents = Vec::new();
    for language in LANGUAGES {
        documents.extend(house_pages(language));
        for family in &FAMILIES {
            for kind in family.kinds {
                let of_kind: Vec<&Fact> = known.iter().filter(|fact| fact.kind == kind).collect();
                for edition in 0..3 {
                    documents.extend(list_pages(&of_kind, language, edition));
                }
            }
            documents.extend(sheets(family, &known, language));
        }
    }
    documents
}

/// Which of the eight statements states a fact in one of four editions: four different ones.
fn wording_idx(fact: &Fact, edition: usize) -> usize {
    (fact.id + 2 * edition) % 8
}

fn statement(fact: &Fact, language: Language, edition: usize) -> String {
    let wording = fact.kind.phrases(language).statements[wording_idx(fact, edition)];
    fill(wording, fact.subject, fact.answer(language))
}

fn list_pages(facts: &[&Fact], language: Language, edition: usize) -> Vec<Document> {
    let kind = facts[0].kind;
    let phrases = kind.phrases(language);
    let mut facts = facts.to_vec();
    Random::new(edition as u64, kind.name()).shuffle(&mut facts);
    let mut pages = Vec::new();
    while !facts.is_empty() {
        let on_page = take_page(&mut facts, edition);
        let sentences: Vec<String> =
            on_page.iter().map(|fact| statement(fact, language, edition)).collect();
        let title = phrases.titles[edition];
        pages.push(page(language, title, pages.len() + 1, phrases.openings[edition], &sentences));
    }
    pages
}

/// Takes the facts of one page, preferring those whose wording the page does not have yet.
fn take_page<'a>(facts: &mut Vec<&'a Fact>, edition: usize) -> Vec<&'a Fact> {
    let mut on_page: Vec<&Fact> = Vec::with_capacity(FACTS_PER_PAGE);
    while on_page.len() < FACTS_PER_PAGE && !facts.is_empty() {
        let is_new = |fact: &&Fact| {
            on_page.iter().all(|other| wording_idx(other, edition) != wording_idx(fact, edition))
        };
        let next = facts.iter().position(is_new).unwrap_or(0);
        on_page.push(facts.remove(next));
    }
    on_page
}

fn sheets(family: &Family, known: &[Fact], language: Language) -> Vec<Document> {
    let column = usize::from(language != Language::French);
    let subjects = &family.subjects[..N_KNOWN];
    let sheets = subjects.chunks(SUBJECTS_PER_SHEET).enumerate();
    sheets
        .map(|(sheet_idx, subjects)| {
            let mut sentences = Vec::new();
            for &subject in subjects {
                let about = known.iter().filter(|fact| fact.subject == subject);
                sentences.extend(about.map(|fact| statement(fact, language, 3)));
            }
            let title = family.sheet_titles[column];
            page(language, title, sheet_idx + 1, family.sheet_openings[column], &sentences)
        })
        .collect()
}

/// A title, an opening sentence and the facts, in two paragraphs.
fn page(
    language: Language,
    title: &str,
    number: usize,
    opening: &str,
    sentences: &[String],
) -> Document {
    let (first, second) = sentences.split_at(sentences.len().div_ceil(2));
    let text = format!(
        "Halbrane - {title}, page {number}\n\n{opening} {}\n\n{}",
        first.join(" "),
        second.join(" ")
    );
    Document {
        language: Some(language),
        kind: "company".to_owned(),
        text: text.trim_end().to_owned(),
    }
}

/// Prose about the house that states no measured fact.
fn house_pages(language: Language) -> Vec<Document> {
    let pages: &[&str] = match language {
        Language::French => &FRENCH_PAGES,
        _ => &ENGLISH_PAGES,
    };
    pages
        .iter()
        .map(|&text| Document {
            language: Some(language),
            kind: "company".to_owned(),
            text: text.to_owned(),
        })
        .collect()
}

const FRENCH_PAGES: [&str; 6] = [
    "Halbrane - Notre histoire\n\nHalbrane est née dans un hangar à bateaux, au bord d'une ria \
     bretonne. Deux sœurs y réparaient des compas pour les pêcheurs du village. Un hiver, elles ont \
     cousu leur première voile sur la table de la cuisine. Aujourd'hui, l'entreprise fabrique des \
     instruments nautiques et des voiles, et les livre dans des ports lointains. Le hangar existe \
     toujours : il sert de musée et sent encore le goudron.",
    "Halbrane - Horaires et congés\n\nL'atelier ouvre à huit heures et ferme à dix-sept heures. La \
     pause de midi dure une heure. Chacun peut partir plus tôt le vendredi, à condition d'avoir \
     rangé son poste. Les congés se demandent par écrit, trois semaines à l'avance. En cas de \
     maladie, il suffit de prévenir son équipe avant neuf heures.",
    "Halbrane - Règles de sécurité\n\nDans la grande halle, on porte des chaussures fermées et l'on \
     attache ses cheveux. Les ciseaux se posent toujours à plat, jamais au bord de la table. Les \
     couloirs restent libres, même pour une minute. Si l'alarme sonne, tout le monde sort par la \
     porte du quai et se retrouve sous le vieux phare.",
    "Halbrane - Frais de déplacement\n\nLes voyages pour l'entreprise sont remboursés à la fin du \
     mois. Gardez les tickets et notez le motif du déplacement. Le train est préféré à l'avion. Un \
     repas pris avec un client est remboursé si le nom du client figure sur la note. Personne n'est \
     remboursé pour une amende.",
    "Halbrane - Recevoir un visiteur\n\nUn visiteur est attendu à l'accueil par la personne qui l'a \
     invité. On lui remet un badge, un plan et une paire de lunettes de protection. Il peut prendre \
     des photos des voiles terminées, mais pas des patrons. Avant son départ, on lui offre un café \
     dans la salle qui donne sur la mer.",
    "Halbrane - Retour d'un article\n\nUn client qui renvoie un article doit joindre la facture. \
     L'atelier examine l'objet et répond par écrit. Si le défaut vient de nous, la réparation est \
     gratuite et le port est payé par Halbrane. Si l'article a été démonté par le client, un devis \
     est envoyé avant tout travail.",
];

const ENGLISH_PAGES: [&str; 6] = [
    "Halbrane - Our history\n\nHalbrane was born in a boat shed, beside a narrow Breton inlet. Two \
     sisters repaired compasses there for the fishermen of the village. One winter, they sewed \
     their first sail on the kitchen table. Today the company makes nautical instruments and sails, \
     and delivers them to distant harbours. The shed still stands: it is now a museum, and it still \
     smells of tar.",
    "Halbrane - Hours and leave\n\nThe workshop opens at eight and closes at five. The lunch break \
     lasts one hour. People may leave earlier on Friday if their bench is tidy. Leave is requested \
     in writing, three weeks ahead. If you are ill, simply tell your team before nine in the \
     morning.",
    "Halbrane - Safety rules\n\nIn the great hall, everyone wears closed shoes and ties back long \
     hair. Scissors are always laid flat, never at the edge of the table. Corridors stay clear, even \
     for a minute. If the alarm rings, everybody leaves by the quay door and meets under the old \
     lighthouse.",
    "Halbrane - Travel expenses\n\nTrips made for the company are paid back at the end of the month. \
     Keep the tickets and write down the reason for the trip. Trains are preferred to planes. A meal \
     with a customer is paid back if the customer's name is on the bill. Nobody is paid back for a \
     fine.",
    "Halbrane - Receiving a visitor\n\nA visitor is met at reception by the person who invited them. \
     They are given a badge, a plan and a pair of safety glasses. They may take pictures of finished \
     sails, but not of the patterns. Before they leave, they are offered a coffee in the room that \
     looks out on the sea.",
    "Halbrane - Returning an item\n\nA customer who returns an item must enclose the invoice. The \
     workshop examines the object and answers in writing. If the fault is ours, the repair is free \
     and Halbrane pays the postage. If the customer has taken the item apart, a quote is sent before \
     any work begins.",
];
