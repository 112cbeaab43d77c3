//! JSON as Python's `json.dumps` writes it, for the `tojson` filter.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

use super::{
    Cover,
    python::{self, DEEPEST, MOST_BYTES},
};

/// The arguments of `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct Style {
    /// Spaces of a level, each item then on a line of its own.
    pub(super) indent: Option<usize>,
    /// Whether everything beyond ASCII is escaped.
    pub(super) ensure_ascii: bool,
    /// What stands after an item, and after a key; `", "` (without the space where items are on
    /// lines) and `": "` by default.
    pub(super) separators: Option<(String, String)>,
}

/// `value` as JSON.
pub(super) fn dumps(value: &impl Serialize, style: &Style) -> Result<String, serde_json::Error> {
    let comma = if style.indent.is_some() { "," } else { ", " };
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (comma, ": "),
    };
    let python = Python { style, item, key, level: 0, is_empty: true };
    let mut text = Text(Vec::new());
    value.serialize(&mut Serializer::with_formatter(&mut text, python))?;
    // serde_json writes UTF-8 only.
    Ok(String::from_utf8_lossy(&text.0).into_owned())
}

/// Takes no more than a value's text may have.
struct Text(Vec<u8>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MOST_BYTES {
            return Err(io::Error::other("the value is too long"));
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Python<'s> {
    style: &'s Style,
    item: &'s str,
    key: &'s str,
    level: usize,
    /// Whether nothing has been written in the innermost list or object.
    is_empty: bool,
}

impl Python<'_> {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, mark: &[u8]) -> io::Result<()> {
        self.level += 1;
        if self.level > DEEPEST {
            return Err(io::Error::other("the value is too deep"));
        }
        self.is_empty = true;
        writer.write_all(mark)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, mark: &[u8]) -> io::Result<()> {
        self.level -= 1;
        if !self.is_empty {
            self.new_line(writer)?;
        }
        self.is_empty = false;
        writer.write_all(mark)
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.is_empty = false;
        self.new_line(writer)
    }

    fn new_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        match self.style.indent {
            Some(indent) => {
                writer.write_all(b"\n")?;
                (0..indent.saturating_mul(self.level)).try_for_each(|_| writer.write_all(b" "))
            }
            None => Ok(()),
        }
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python::float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.style.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            match character {
                ' '..='~' => write!(writer, "{character}")?,
                _ if Cover::is_stand_in(character) => write!(writer, "{character}")?,
                _ => {
                    for unit in character.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
