//! The names of control tokens, as a conversation that a model's own template has written may hold them.

use std::collections::{BTreeSet, HashMap};

use crate::added::AddedTokens;

/// What depends on the names alone, and not on the conversation.
#[derive(Debug)]
pub(crate) struct ControlNames {
    /// Finds the names in a text; `None` without any.
    pub(crate) tokens: Option<AddedTokens>,
    /// The characters of the names.
    pub(crate) characters: BTreeSet<char>,
    /// Those that are no white space, and what a change of case makes of them.
    pub(crate) all_cases: BTreeSet<char>,
}

impl ControlNames {
    /// Names of white space alone are left out: templates trim content and cut it into lines, so it is not kept apart.
    pub(crate) fn new(ids: &HashMap<String, u32>) -> ControlNames {
        let named = ids.iter().filter(|(name, _)| !name.chars().all(char::is_whitespace));
        let named: HashMap<&str, u32> = named.map(|(name, &id)| (name.as_str(), id)).collect();
        let characters: BTreeSet<char> = named.keys().flat_map(|name| name.chars()).collect();
        let cases = characters.iter().flat_map(|&c| all_cases(c));
        ControlNames {
            all_cases: cases.filter(|c| !c.is_whitespace()).collect(),
            characters,
            tokens: AddedTokens::new(named),
        }
    }
}

/// The character and what changes of its case make of it: of `ẞ` also `ß`, `S` and `s`.
pub(crate) fn all_cases(c: char) -> BTreeSet<char> {
    let mut cases = BTreeSet::from([c]);
    let mut new = vec![c];
    while let Some(c) = new.pop() {
        let at_the_end_of_a_word = (c == 'Σ').then_some('ς');
        let others = c.to_uppercase().chain(c.to_lowercase()).chain(at_the_end_of_a_word);
        new.extend(others.filter(|&other| cases.insert(other)));
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_white_space_are_left_out_and_cases_count() {
        let ids = [("<S>", 1), (" \n", 2), ("", 3), ("a b", 4)];
        let ids = ids.map(|(name, id)| (name.to_string(), id)).into();
        let names = ControlNames::new(&ids);
        assert_eq!(names.tokens.unwrap().ids().collect::<BTreeSet<_>>(), [1, 4].into());
        assert_eq!(names.characters.iter().collect::<String>(), " <>Sab");
        assert_eq!(names.all_cases.iter().collect::<String>(), "<>ABSabs");
    }

    #[test]
    fn cases_are_found_through_several_changes() {
        assert!(all_cases('Σ').contains(&'ς') && all_cases('σ').contains(&'ς'));
        assert!(all_cases('ẞ').is_superset(&['ß', 'S', 's'].into()));
    }
}
