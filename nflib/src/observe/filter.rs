//! Packet filters: classic BPF, checked once and then run without any further care.
//!
//! A filter comes from another process, compiled by whom ever. [`Filter::new`] accepts only programs
//! whose jumps go forward and stay inside, so that every run ends; running one cannot panic, since what
//! lies outside the packet ends it. As with libpcap, loads beyond the packet and divisions by a zero that
//! turns up only then mean: not this packet. There are no loads of what is beside the packet (the kernel's
//! ancillary ones).
#![forbid(unsafe_code)]

use thiserror::Error;

use crate::control::{FilterStep, MAX_FILTER_STEPS};

/// Words of scratch memory (BPF_MEMWORDS).
const MEMORY_WORDS: usize = 16;

/// Why a program is no filter; numbers of steps count from 0.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    /// Too long.
    #[error("a filter of {0} steps, expected at most {MAX_FILTER_STEPS}")]
    TooLong(usize),
    /// An instruction that there is not, or that is not supported.
    #[error("step {at} of the filter has the unknown code {code:#06x}")]
    UnknownCode {
        /// The step.
        at: usize,
        /// Its code.
        code: u16,
    },
    /// A jump to behind the end.
    #[error("step {at} of the filter jumps out of it")]
    JumpsOut {
        /// The step.
        at: usize,
    },
    /// A division by a constant zero.
    #[error("step {at} of the filter divides by zero")]
    DividesByZero {
        /// The step.
        at: usize,
    },
    /// A shift by more than there is, of which nobody says what it means.
    #[error("step {at} of the filter shifts by {bits} bits, expected at most 31")]
    ShiftsTooFar {
        /// The step.
        at: usize,
        /// By so many.
        bits: u32,
    },
    /// A word of scratch memory that there is not.
    #[error("step {at} of the filter names word {word} of {MEMORY_WORDS} of scratch memory")]
    NoSuchWord {
        /// The step.
        at: usize,
        /// The word.
        word: u32,
    },
    /// The last step goes on to a next one.
    #[error("the filter does not end in a return")]
    NoReturn,
}

/// A filter that can be run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    steps: Box<[Step]>,
}

/// How much is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Byte,
    Half,
    Word,
}

/// The second operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operand {
    Constant(u32),
    Index,
}

/// Arithmetic with the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Or,
    And,
    Xor,
    ShiftLeft,
    ShiftRight,
}

/// A comparison with the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
    AnyBit,
}

/// One instruction: on the accumulator, unless it says otherwise. Targets of jumps are steps from the
/// beginning, later than the jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Load(Operand),
    LoadPacket(Width, u32),
    /// At the index register and so many bytes.
    LoadIndexed(Width, u32),
    LoadMemory(u8),
    LoadLength,
    /// These four: into the index register.
    Index(u32),
    IndexMemory(u8),
    IndexLength,
    /// Four times the lower half of the byte there: the length of an IPv4 header.
    IndexHeader(u32),
    Store(u8),
    StoreIndex(u8),
    Compute(Arithmetic, Operand),
    Negate,
    Jump(u16),
    JumpIf(Test, Operand, u16, u16),
    IndexFromAccumulator,
    Return(bool),
    ReturnAccumulator,
}

impl Filter {
    /// Checks a program. One without steps takes every packet.
    ///
    /// # Errors
    /// [`FilterError`], for the first step that is wrong.
    pub fn new(steps: &[FilterStep]) -> Result<Self, FilterError> {
        if steps.len() > MAX_FILTER_STEPS {
            return Err(FilterError::TooLong(steps.len()));
        }
        let decode = |(at, step): (usize, &FilterStep)| Step::decode(at, *step, steps.len());
        let steps = steps.iter().enumerate().map(decode).collect::<Result<Box<[_]>, _>>()?;
        match steps.last() {
            None | Some(Step::Return(_) | Step::ReturnAccumulator) => Ok(Self { steps }),
            Some(_) => Err(FilterError::NoReturn),
        }
    }

    /// Whether the filter takes a packet of `len_bytes`, of which `packet` are the first bytes.
    #[must_use]
    pub fn accepts(&self, packet: &[u8], len_bytes: u32) -> bool {
        self.steps.is_empty() || self.run(packet, len_bytes).unwrap_or(false)
    }

    /// `None` where the packet ends before a load does, or where zero divides.
    fn run(&self, packet: &[u8], len_bytes: u32) -> Option<bool> {
        let (mut a, mut x) = (0_u32, 0_u32);
        let mut memory = [0_u32; MEMORY_WORDS];
        let mut at = 0;
        // Each jump goes forward: there are at most as many turns as steps.
        loop {
            let step = *self.steps.get(at)?;
            at += 1;
            match step {
                Step::Load(operand) => a = operand.value(x),
                Step::LoadPacket(width, offset) => a = load(packet, width, offset)?,
                Step::LoadIndexed(width, offset) => {
                    a = load(packet, width, x.checked_add(offset)?)?;
                }
                Step::LoadMemory(word) => a = *memory.get(usize::from(word))?,
                Step::LoadLength => a = len_bytes,
                Step::Index(value) => x = value,
                Step::IndexMemory(word) => x = *memory.get(usize::from(word))?,
                Step::IndexLength => x = len_bytes,
                Step::IndexHeader(offset) => x = (load(packet, Width::Byte, offset)? & 0xf) * 4,
                Step::Store(word) => *memory.get_mut(usize::from(word))? = a,
                Step::StoreIndex(word) => *memory.get_mut(usize::from(word))? = x,
                Step::Compute(arithmetic, operand) => a = arithmetic.of(a, operand.value(x))?,
                Step::Negate => a = a.wrapping_neg(),
                Step::Jump(target) => at = usize::from(target),
                Step::JumpIf(test, operand, yes, no) => {
                    at = usize::from(if test.holds(a, operand.value(x)) { yes } else { no });
                }
                Step::IndexFromAccumulator => x = a,
                Step::Return(taken) => return Some(taken),
                Step::ReturnAccumulator => return Some(a != 0),
            }
        }
    }
}

impl Operand {
    fn value(self, x: u32) -> u32 {
        match self {
            Self::Constant(constant) => constant,
            Self::Index => x,
        }
    }
}

impl Arithmetic {
    fn of(self, a: u32, b: u32) -> Option<u32> {
        Some(match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => a.checked_div(b)?,
            Self::Mod => a.checked_rem(b)?,
            Self::Or => a | b,
            Self::And => a & b,
            Self::Xor => a ^ b,
            Self::ShiftLeft => a.checked_shl(b).unwrap_or(0),
            Self::ShiftRight => a.checked_shr(b).unwrap_or(0),
        })
    }
}

impl Test {
    fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Self::Equal => a == b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::AnyBit => a & b != 0,
        }
    }
}

/// A number in network byte order, if the packet has it.
fn load(packet: &[u8], width: Width, offset: u32) -> Option<u32> {
    let rest = packet.get(usize::try_from(offset).ok()?..)?;
    match width {
        Width::Byte => rest.first().map(|&byte| byte.into()),
        Width::Half => rest.first_chunk().map(|&bytes| u16::from_be_bytes(bytes).into()),
        Width::Word => rest.first_chunk().map(|&bytes| u32::from_be_bytes(bytes)),
    }
}

impl Step {
    /// The instruction behind what `struct sock_filter` says at `at`, of `len` steps.
    fn decode(at: usize, step: FilterStep, len: usize) -> Result<Self, FilterError> {
        let (code, if_true, if_false, k) = step;
        let unknown = FilterError::UnknownCode { at, code };
        let word = || match u8::try_from(k) {
            Ok(word) if usize::from(word) < MEMORY_WORDS => Ok(word),
            _ => Err(FilterError::NoSuchWord { at, word: k }),
        };
        let target = |distance: u32| match u16::try_from(at as u64 + 1 + u64::from(distance)) {
            Ok(target) if usize::from(target) < len => Ok(target),
            _ => Err(FilterError::JumpsOut { at }),
        };
        // Loads of constants, memory and lengths have words only.
        let width = match code & 0x18 {
            0x00 => Ok(Width::Word),
            0x08 => Ok(Width::Half),
            0x10 => Ok(Width::Byte),
            _ => Err(unknown),
        };
        let operand = if code & 0x08 == 0 { Operand::Constant(k) } else { Operand::Index };
        Ok(match (code & 0x07, code & !0x07) {
            (0, 0x00) => Self::Load(Operand::Constant(k)),
            (0, 0x20 | 0x28 | 0x30) => Self::LoadPacket(width?, k),
            (0, 0x40 | 0x48 | 0x50) => Self::LoadIndexed(width?, k),
            (0, 0x60) => Self::LoadMemory(word()?),
            (0, 0x80) => Self::LoadLength,
            (1, 0x00) => Self::Index(k),
            (1, 0x60) => Self::IndexMemory(word()?),
            (1, 0x80) => Self::IndexLength,
            (1, 0xb0) => Self::IndexHeader(k),
            (2, 0x00) => Self::Store(word()?),
            (3, 0x00) => Self::StoreIndex(word()?),
            (4, 0x80) => Self::Negate,
            (4, _) => Self::Compute(arithmetic(at, code, operand)?, operand),
            (5, 0x00) => Self::Jump(target(k)?),
            (5, _) => {
                let test = test(code).ok_or(unknown)?;
                Self::JumpIf(test, operand, target(if_true.into())?, target(if_false.into())?)
            }
            (6, 0x00) => Self::Return(k != 0),
            (6, 0x10) => Self::ReturnAccumulator,
            (7, 0x00) => Self::IndexFromAccumulator,
            (7, 0x80) => Self::Load(Operand::Index),
            _ => return Err(unknown),
        })
    }
}

fn arithmetic(at: usize, code: u16, operand: Operand) -> Result<Arithmetic, FilterError> {
    let arithmetic = match code & !0x0f {
        0x00 => Arithmetic::Add,
        0x10 => Arithmetic::Sub,
        0x20 => Arithmetic::Mul,
        0x30 => Arithmetic::Div,
        0x40 => Arithmetic::Or,
        0x50 => Arithmetic::And,
        0x60 => Arithmetic::ShiftLeft,
        0x70 => Arithmetic::ShiftRight,
        0x90 => Arithmetic::Mod,
        0xa0 => Arithmetic::Xor,
        _ => return Err(FilterError::UnknownCode { at, code }),
    };
    match (arithmetic, operand) {
        (Arithmetic::Div | Arithmetic::Mod, Operand::Constant(0)) => {
            Err(FilterError::DividesByZero { at })
        }
        (Arithmetic::ShiftLeft | Arithmetic::ShiftRight, Operand::Constant(bits)) if bits > 31 => {
            Err(FilterError::ShiftsTooFar { at, bits })
        }
        _ => Ok(arithmetic),
    }
}

fn test(code: u16) -> Option<Test> {
    match code & !0x0f {
        0x10 => Some(Test::Equal),
        0x20 => Some(Test::Greater),
        0x30 => Some(Test::GreaterOrEqual),
        0x40 => Some(Test::AnyBit),
        _ => None,
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
