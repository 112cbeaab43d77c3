//! Log probabilities as OpenAI writes them.

use lfm2vl::{TokenLogprobs, chat::Tokenizer};

use crate::wire::{TokenLogprob, TopLogprob};

/// The log probabilities in the place of one token.
pub(super) fn of(tokenizer: &Tokenizer, logprobs: &TokenLogprobs) -> TokenLogprob {
    let chosen = top(tokenizer, &logprobs.chosen);
    TokenLogprob {
        token: chosen.token,
        logprob: chosen.logprob,
        bytes: chosen.bytes,
        top_logprobs: logprobs.top.iter().map(|token| top(tokenizer, token)).collect(),
    }
}

/// What OpenAI gives a token that cannot come.
const IMPOSSIBLE: f32 = -9999.0;

fn top(tokenizer: &Tokenizer, token: &lfm2vl::TokenLogprob) -> TopLogprob {
    let bytes = tokenizer.token_bytes(token.token_id);
    let text = bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    TopLogprob {
        token: text.or_else(|| tokenizer.token(token.token_id)).unwrap_or_default(),
        logprob: token.logprob.max(IMPOSSIBLE),
        bytes: bytes.map(<[u8]>::to_vec),
    }
}
