use std::path::PathBuf;

/// Why messages cannot be turned into tokens, or tokens into text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// A file of the model could not be read.
    #[error("cannot read {path} ({message}); export the model again")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// The model has no chat template.
    #[error(
        "{0} has neither chat_template.jinja nor a chat_template in tokenizer_config.json; add the model's template"
    )]
    NoTemplate(PathBuf),
    /// The template is not valid, or refused the messages.
    #[error("the chat template cannot render this conversation ({0}); check roles and contents")]
    Template(String),
    /// The template took more steps, or would write more, than any conversation of that size needs.
    #[error(
        "the chat template does not end on this conversation; correct the loops of the template"
    )]
    EndlessTemplate,
    /// A prompt cannot both continue a message and start another.
    #[error(
        "the prompt is to continue the final message and to start an answer; ask for one of these"
    )]
    TwoEnds,
    /// There is no text to continue.
    #[error("the last message has no text to continue; give it one or do not continue it")]
    NothingToContinue,
    /// Placeholders and images do not match.
    #[error(
        "the prompt has {marks} {token} marks and {images} images; give one image for each mark"
    )]
    ImageCount {
        /// The placeholder.
        token: String,
        /// Placeholders in the prompt.
        marks: usize,
        /// Images given.
        images: usize,
    },
    /// The arguments of a tool call in the messages cannot be read.
    #[error("the arguments of the call of '{name}' are no JSON object ({message}); correct them")]
    Arguments {
        /// The function that is called.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// The tokenizer lacks a token that the model needs.
    #[error("the tokenizer has no token {0}; export the model again")]
    NoSuchToken(String),
    /// The tokenizer failed.
    #[error("the tokenizer failed ({0}); check that tokenizer.json belongs to the model")]
    Tokenizer(String),
}
