//! Sparse files in tar archives of the PAX format: a map of segments, and the data of these segments only.
//!
//! GNU tar has three forms. In 0.0 and 0.1 the map is in the attributes of the entry, in 1.0 it precedes the data.
//! `bsdtar` writes form 1.0 for every file with holes, without an option. The tar library reads the oldest form, which
//! has an entry type of its own.
//!
//! Source: the manual of GNU tar, "Storing Sparse Files".

use std::io::{self, Read};

/// A sparse file as the attributes of its entry describe it.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Its size with all holes.
    pub(super) size: u64,
    map: Map,
}

/// Where the segments are.
#[derive(Debug)]
enum Map {
    Attributes(Vec<Segment>),
    Content,
}

/// A part of the file that is not a hole.
#[derive(Debug, Clone, Copy)]
struct Segment {
    offset: u64,
    length: u64,
}

/// Why a map cannot be used.
#[derive(Debug)]
pub(super) enum BadMap {
    /// It could not be read.
    Unreadable(io::Error),
    /// It contradicts itself or the entry.
    Wrong(String),
}

/// The attribute with the path of a sparse file. With it, the path of the entry itself names a temporary file.
pub(super) const NAME: &[u8] = b"GNU.sparse.name";

/// The size of a block of tar, to which the map in the content is padded.
const BLOCK_BYTES: usize = 512;

impl Sparse {
    /// Recognises a sparse file by the attributes of its entry, in their order.
    pub(super) fn of<'a>(attributes: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Option<Self>, BadMap> {
        let (mut version, mut size, mut count, mut offset) = ((0, 0), None, None, None);
        let mut segments = Vec::new();
        let mut is_sparse = false;
        for (key, value) in attributes {
            let Some(key) = key.strip_prefix(b"GNU.sparse.") else { continue };
            is_sparse = true;
            match key {
                b"major" => version.0 = number(value)?,
                b"minor" => version.1 = number(value)?,
                b"size" | b"realsize" => size = Some(number(value)?),
                b"numblocks" => count = Some(number(value)?),
                b"offset" => offset = Some(number(value)?),
                b"numbytes" => {
                    let offset = offset.take().ok_or_else(|| wrong("a segment without an offset"))?;
                    segments.push(Segment { offset, length: number(value)? });
                }
                b"map" => segments = segments_of(value)?,
                _ => {}
            }
        }
        if !is_sparse {
            return Ok(None);
        }
        let map = match version {
            (0, 0 | 1) if count.is_some_and(|count| count != segments.len() as u64) => {
                return Err(wrong(format!("{} segments in place of the announced number", segments.len())));
            }
            (0, 0 | 1) => Map::Attributes(segments),
            (1, 0) => Map::Content,
            (major, minor) => return Err(wrong(format!("the version {major}.{minor}, which is not supported"))),
        };
        let size = size.ok_or_else(|| wrong("no size"))?;
        Ok(Some(Self { size, map }))
    }

    /// A reader of the whole file. `content_bytes` is the size of `content`.
    pub(super) fn open<R: Read>(self, mut content: R, content_bytes: u64) -> Result<Expanded<R>, BadMap> {
        let (segments, map_bytes) = match self.map {
            Map::Attributes(segments) => (segments, 0),
            Map::Content => read_map(&mut content)?,
        };
        let mut end = 0;
        let mut data_bytes = map_bytes;
        for segment in &segments {
            let next = segment.offset.checked_add(segment.length).filter(|next| *next <= self.size);
            let Some(next) = next.filter(|_| segment.offset >= end) else {
                return Err(wrong("segments that overlap or reach past the end"));
            };
            end = next;
            data_bytes = data_bytes.saturating_add(segment.length);
        }
        if data_bytes != content_bytes {
            return Err(wrong(format!("{data_bytes} bytes with its map, but the entry has {content_bytes}")));
        }
        Ok(Expanded { content, segments: segments.into_iter(), hole: 0, data: 0, at: 0, size: self.size })
    }
}

/// The bytes of a sparse file, holes included.
pub(super) struct Expanded<R> {
    content: R,
    /// The segments that follow.
    segments: std::vec::IntoIter<Segment>,
    /// How many bytes are left of the current hole.
    hole: u64,
    /// How many bytes are left of the segment after it.
    data: u64,
    /// Where that segment ends.
    at: u64,
    size: u64,
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let room = buffer.len();
            let at_most = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(room);
            if self.hole > 0 {
                let length = at_most(self.hole);
                buffer[..length].fill(0);
                self.hole -= length as u64;
                return Ok(length);
            }
            if self.data > 0 {
                let length = self.content.read(&mut buffer[..at_most(self.data)])?;
                self.data -= length as u64;
                return Ok(length);
            }
            let next = self.segments.next();
            let Segment { offset, length } = next.unwrap_or(Segment { offset: self.size, length: 0 });
            if next.is_none() && self.at == self.size {
                return Ok(0);
            }
            self.hole = offset - self.at;
            self.data = length;
            self.at = offset + length;
        }
    }
}

/// Reads the map before the data: the number of segments, then the offset and length of each, all as decimal numbers
/// with a newline, padded to a whole block. Returns its size, too.
fn read_map(content: &mut impl Read) -> Result<(Vec<Segment>, u64), BadMap> {
    let mut block = [0; BLOCK_BYTES];
    let mut bytes = 0;
    let mut at = BLOCK_BYTES;
    let mut next = || {
        let mut digits = Vec::new();
        loop {
            if at == BLOCK_BYTES {
                content.read_exact(&mut block).map_err(BadMap::Unreadable)?;
                bytes += BLOCK_BYTES as u64;
                at = 0;
            }
            at += 1;
            match block[at - 1] {
                b'\n' => return number(&digits),
                digit if digits.len() < MAX_DIGITS => digits.push(digit),
                _ => return Err(wrong("a number that is too long")),
            }
        }
    };
    let count = next()?;
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment { offset: next()?, length: next()? });
    }
    Ok((segments, bytes))
}

/// How many digits the largest number has.
const MAX_DIGITS: usize = 20;

fn segments_of(map: &[u8]) -> Result<Vec<Segment>, BadMap> {
    if map.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Vec<_> = map.split(|byte| *byte == b',').map(number).collect::<Result<_, _>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong("a segment without a length"));
    }
    Ok(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
}

fn number(digits: &[u8]) -> Result<u64, BadMap> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| wrong("something other than a number"))
}

fn wrong(what: impl Into<String>) -> BadMap {
    BadMap::Wrong(what.into())
}
