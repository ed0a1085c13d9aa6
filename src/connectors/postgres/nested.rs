//! Arrays and composites in their binary form: what they hold is pushed into the columns below.
//!
//! Sizes and lengths come from the wire, so each is checked against the bytes that are there.

use super::column::{Bad, Column};

/// `dimensions │ has NULLs │ element type │ (size │ lower bound) … │ (length │ value) …`
pub(super) fn push_list(offsets: &mut [Vec<i32>], child: &mut Column, value: &[u8]) -> Result<(), Bad> {
    let mut rest = value;
    let declared = offsets.len();
    let dimensions = take_i32(&mut rest)?;
    take_i32(&mut rest)?;
    take_i32(&mut rest)?;
    if dimensions != 0 && dimensions != declared as i32 {
        return Err(Bad::Shape);
    }
    // An empty array has no dimensions at all.
    let mut sizes = [0; u8::MAX as usize];
    let sizes = &mut sizes[..declared];
    for size in sizes.iter_mut().take(dimensions as usize) {
        *size = take_i32(&mut rest)?;
        if take_i32(&mut rest)? != 1 {
            return Err(Bad::Shape);
        }
        // Each element takes four bytes at least, so this bounds what the loops below can do.
        if *size < 0 || *size as usize > value.len() / 4 {
            return Err(Bad::Malformed);
        }
    }
    push_dimension(offsets, sizes, child, &mut rest)?;
    if rest.is_empty() { Ok(()) } else { Err(Bad::Malformed) }
}

fn push_dimension(
    offsets: &mut [Vec<i32>],
    sizes: &[i32],
    child: &mut Column,
    rest: &mut &[u8],
) -> Result<(), Bad> {
    let Some((level, inner)) = offsets.split_first_mut() else { return Ok(()) };
    let (size, sizes) = (sizes[0], &sizes[1..]);
    for _ in 0..size {
        if inner.is_empty() {
            push_field(child, rest)?;
        } else {
            push_dimension(inner, sizes, child, rest)?;
        }
    }
    let end = match inner.first() {
        Some(inner) => inner.len() - 1,
        None => child.len(),
    };
    level.push(i32::try_from(end).map_err(|_| Bad::Malformed)?);
    Ok(())
}

/// `members │ (type │ length │ value) …`
pub(super) fn push_struct(children: &mut [Column], value: &[u8]) -> Result<(), Bad> {
    let mut rest = value;
    if take_i32(&mut rest)? != children.len() as i32 {
        return Err(Bad::Malformed);
    }
    for child in children {
        take_i32(&mut rest)?;
        push_field(child, &mut rest)?;
    }
    if rest.is_empty() { Ok(()) } else { Err(Bad::Malformed) }
}

/// A length, -1 for NULL, and a value.
fn push_field(column: &mut Column, rest: &mut &[u8]) -> Result<(), Bad> {
    let len = take_i32(rest)?;
    if len == -1 {
        column.push_null();
        return Ok(());
    }
    let len = usize::try_from(len).map_err(|_| Bad::Malformed)?;
    let (value, tail) = rest.split_at_checked(len).ok_or(Bad::Malformed)?;
    *rest = tail;
    column.push(value)
}

fn take_i32(rest: &mut &[u8]) -> Result<i32, Bad> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(Bad::Malformed)?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}
