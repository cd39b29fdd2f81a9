//! Conversations, and the templates that turn them into tokens: the same object for training and for serving.

mod conversation;
mod fill;
mod galerne;
pub mod instruct;
mod jinja;
mod template;

pub(crate) use galerne::JINJA as GALERNE_JINJA;

pub use conversation::{Conversation, Message, Role};
pub use jinja::JinjaTemplate;
pub use template::{ChatTemplate, Ending, Rendered};
