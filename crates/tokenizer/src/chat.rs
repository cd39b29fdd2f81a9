//! Conversations, and the templates that turn them into tokens: the same object for training and for serving.

mod conversation;
pub mod instruct;
mod template;

pub use conversation::{Conversation, Message, Role};
pub use template::{ChatTemplate, Ending, Rendered};
