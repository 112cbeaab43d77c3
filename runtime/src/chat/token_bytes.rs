//! The bytes that tokens stand for: a token may hold a part of a character.

use std::collections::HashMap;

use tokenizers::{DecoderWrapper, Tokenizer};

/// How a vocabulary writes bytes.
#[derive(Clone, Copy, PartialEq)]
enum Alphabet {
    /// Each byte is a character of its own, as in GPT-2's `bytes_to_unicode`.
    ByteLevel,
    /// Text as it is, with U+2581 for a space; bytes that no token has are `<0x00>` to `<0xFF>`.
    ByteFallback,
}

/// The bytes of each token by its id, empty for ids without one; `None` where the tokenizer's decoder is not
/// one of these.
pub(super) fn token_bytes(tokenizer: &Tokenizer) -> Option<Vec<Vec<u8>>> {
    let alphabet = alphabet(tokenizer.get_decoder()?)?;
    let bytes = byte_level_bytes();
    let added = tokenizer.get_added_tokens_decoder();
    let ids = added.keys().map(|&id| id as usize + 1).max().unwrap_or_default();
    let ids = ids.max(tokenizer.get_vocab_size(true));
    let of = |id: u32| {
        if let Some(token) = added.get(&id) {
            return token.content.clone().into_bytes();
        }
        let Some(token) = tokenizer.id_to_token(id) else { return Vec::new() };
        match alphabet {
            Alphabet::ByteLevel => {
                let known: Option<Vec<u8>> =
                    token.chars().map(|c| bytes.get(&c).copied()).collect();
                known.unwrap_or_default()
            }
            Alphabet::ByteFallback => match single_byte(&token) {
                Some(byte) => vec![byte],
                None => token.replace('\u{2581}', " ").into_bytes(),
            },
        }
    };
    Some((0..ids as u32).map(of).collect())
}

fn alphabet(decoder: &DecoderWrapper) -> Option<Alphabet> {
    match decoder {
        DecoderWrapper::ByteLevel(_) => Some(Alphabet::ByteLevel),
        DecoderWrapper::ByteFallback(_) => Some(Alphabet::ByteFallback),
        DecoderWrapper::Sequence(decoders) => decoders.get_decoders().iter().find_map(alphabet),
        _ => None,
    }
}

/// The byte of a token such as `<0x0A>`.
fn single_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The byte of each character of the byte-level alphabet: printable characters of Latin-1 stand for
/// themselves, the other bytes, in order, are U+0100 and on.
fn byte_level_bytes() -> HashMap<char, u8> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=255).filter(|byte| !is_printable(byte)).zip('\u{100}'..);
    let printable = (0..=255).filter(is_printable).map(|byte| (byte, char::from(byte)));
    printable.chain(others).map(|(byte, character)| (character, byte)).collect()
}
