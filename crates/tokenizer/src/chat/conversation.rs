//! Conversations as JSON lines have them, and their rules.

use super::instruct::InstructRequest;
use super::template::Ending;
use crate::error::Error;
use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        })
    }
}

/// One turn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said: ordinary text, whatever it looks like.
    pub content: String,
}

impl Message {
    /// A message of that role.
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// A conversation: in JSON `{"messages": [{"role": "user", "content": "..."}, ...]}`, the form of mistral-finetune and of
/// OpenAI fine-tuning. Unknown members are errors.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    /// The turns, in order.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// Complete if an answer stands last.
    pub fn ending(&self) -> Ending {
        InstructRequest::from(self).ending()
    }

    /// Checks what every template needs: an optional system message, then user and assistant in turn, no empty content.
    /// Who must speak last depends on the use and is checked by
    /// [`ChatTemplate::render`](crate::ChatTemplate::render).
    ///
    /// # Errors
    /// [`Error::UnexpectedRole`], [`Error::EmptyContent`], [`Error::UnexpectedEnd`], for the first message at fault.
    pub fn validate(&self) -> Result<(), Error> {
        let mut previous = None;
        for (message_idx, message) in self.messages.iter().enumerate() {
            let (may_stand, expected) = match previous {
                None => (message.role != Role::Assistant, "system or user"),
                Some(Role::System | Role::Assistant) => (message.role == Role::User, "user"),
                Some(Role::User) => (message.role == Role::Assistant, "assistant"),
            };
            if !may_stand {
                return Err(Error::UnexpectedRole { message_idx, got: message.role, expected });
            }
            if message.content.trim().is_empty() {
                return Err(Error::EmptyContent { message_idx });
            }
            previous = Some(message.role);
        }
        if matches!(previous, None | Some(Role::System)) {
            let n_messages = self.messages.len();
            return Err(Error::UnexpectedEnd { n_messages, expected: "a user message" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(roles: &[(Role, &str)]) -> String {
        let messages = roles.iter().map(|&(role, content)| Message::new(role, content)).collect();
        Conversation { messages }.validate().unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_message_and_what_was_expected() {
        use Role::{Assistant, System, User};
        let cases: [(&[(Role, &str)], &str); 7] = [
            (&[], "the conversation ends after 0 messages, expected a user message"),
            (&[(System, "s")], "the conversation ends after 1 messages, expected a user message"),
            (&[(Assistant, "a")], "messages[0] has role assistant, expected system or user"),
            (&[(User, "u"), (User, "u")], "messages[1] has role user, expected assistant"),
            (
                &[(User, "u"), (Assistant, "a"), (System, "s")],
                "messages[2] has role system, expected user",
            ),
            (&[(System, "s"), (Assistant, "a")], "messages[1] has role assistant, expected user"),
            (&[(User, " \n")], "messages[0] has empty content, expected text"),
        ];
        for (roles, expected) in cases {
            assert_eq!(error(roles), expected);
        }
    }

    #[test]
    fn json_form_is_that_of_fine_tuning_files() {
        let line = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"assistant","content":"a"}]}"#;
        let conversation: Conversation = serde_json::from_str(line).unwrap();
        conversation.validate().unwrap();
        assert_eq!(serde_json::to_string(&conversation).unwrap(), line);
        for bad in [
            r#"{"messages":[{"role":"tool","content":"s"}]}"#,
            r#"{"messages":[{"role":"user","content":"s","weight":0}]}"#,
            r#"{"messages":[{"role":"user"}]}"#,
            r#"{"messages":[],"tools":[]}"#,
        ] {
            assert!(serde_json::from_str::<Conversation>(bad).is_err(), "{bad}");
        }
    }
}
