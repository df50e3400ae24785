//! The tile instructions, read from memory as the processor reads them.

use super::product::Product;
use libc::{
    REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX, REG_RCX,
    REG_RDI, REG_RDX, REG_RSI, REG_RSP,
};

/// The registers of a thread, as the system gives them to the handler of a signal.
pub type Registers = [i64; 23];

/// What an instruction asks for. Tiles have the numbers that can be written, up to 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `ldtilecfg` from an address.
    LoadConfig(usize),
    /// `sttilecfg` to an address.
    StoreConfig(usize),
    /// `tilerelease`.
    Release,
    /// `tilezero`.
    Zero(usize),
    /// `tileloadd` and `tileloaddt1`.
    Load(usize, Rows),
    /// `tilestored`.
    Store(usize, Rows),
    /// The product of two tiles, `[left, right]`, added to a third.
    Add(Product, usize, [usize; 2]),
}

/// Rows in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The address of the first.
    pub start: usize,
    /// Bytes from one to the next.
    pub stride: usize,
}

/// The registers by their numbers in instructions.
const ORDER: [libc::c_int; 16] = [
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9, REG_R10, REG_R11,
    REG_R12, REG_R13, REG_R14, REG_R15,
];

/// Prefixes by their numbers in VEX.
const NONE: u8 = 0;
const X66: u8 = 1;
const F3: u8 = 2;
const F2: u8 = 3;

/// The instruction at an address, and where the next one begins; none if it has nothing to do with tiles, or is not one
/// at all.
///
/// # Safety
/// The processor has read an instruction there.
pub unsafe fn decode(at: *const u8, registers: &Registers) -> Option<(Instruction, *const u8)> {
    let mut code = Code(at);
    // SAFETY: each byte is read only if those before it do not end an instruction.
    let mut byte = || unsafe { code.byte() };
    if byte() != 0xc4 {
        return None; // not VEX of three bytes, which alone reaches the map 0F38
    }
    let (first, second) = (!byte(), !byte());
    if !first & 31 != 2 || second & 0x84 != 0x84 {
        return None; // map 0F38, W and L of 0
    }
    let (opcode, modrm) = (byte(), byte());
    let fourth = |set: bool| usize::from(set) << 3;
    let register = usize::from(modrm >> 3 & 7) | fourth(first & 0x80 != 0);
    let third = usize::from(second >> 3 & 15);
    let prefix = !second & 3;
    if modrm >> 6 == 3 {
        let other = usize::from(modrm & 7) | fourth(first & 0x20 != 0);
        let product = match (opcode, prefix) {
            (0x49, NONE) if modrm == 0xc0 && third == 0 => return Some((Instruction::Release, code.0)),
            (0x49, F2) if modrm & 7 == 0 && third == 0 => {
                return Some((Instruction::Zero(register), code.0));
            }
            (0x5c, F3) => Product::Bf16,
            (0x5e, F2) => Product::SignedSigned,
            (0x5e, F3) => Product::SignedUnsigned,
            (0x5e, X66) => Product::UnsignedSigned,
            (0x5e, NONE) => Product::UnsignedUnsigned,
            _ => return None,
        };
        return Some((Instruction::Add(product, register, [other, third]), code.0));
    }
    if third != 0 || !matches!(opcode, 0x49 | 0x4b) {
        return None;
    }
    // SAFETY: the caller's promise; such an instruction has the operand that its byte says.
    let rows = unsafe { code.rows(modrm, fourth(first & 0x40 != 0), fourth(first & 0x20 != 0), registers) };
    let (by_rows, place) = (modrm & 7 == 4, rows.start.wrapping_add(rows.stride));
    let instruction = match (opcode, prefix) {
        (0x49, NONE) if register & 7 == 0 => Instruction::LoadConfig(place),
        (0x49, X66) if register & 7 == 0 => Instruction::StoreConfig(place),
        (0x4b, F2 | X66) if by_rows => Instruction::Load(register, rows),
        (0x4b, F3) if by_rows => Instruction::Store(register, rows),
        _ => return None,
    };
    Some((instruction, code.0))
}

/// The rest of an instruction.
struct Code(*const u8);

impl Code {
    /// # Safety
    /// There is another byte.
    unsafe fn byte(&mut self) -> u8 {
        // SAFETY: the caller's promise.
        unsafe {
            let byte = self.0.read();
            self.0 = self.0.add(1);
            byte
        }
    }

    /// # Safety
    /// There are four more bytes.
    unsafe fn four(&mut self) -> usize {
        // SAFETY: the caller's promise.
        let bytes = std::array::from_fn(|_| unsafe { self.byte() });
        i32::from_le_bytes(bytes) as usize
    }

    /// An operand in memory: base and distance are the start, the index times its scale is the stride.
    ///
    /// # Safety
    /// The rest of the operand is there.
    unsafe fn rows(&mut self, modrm: u8, x: usize, b: usize, registers: &Registers) -> Rows {
        let value = |number: usize| registers[ORDER[number] as usize] as usize;
        let (mode, mut base) = (modrm >> 6, usize::from(modrm & 7));
        let (in_code, mut stride) = (base == 5, 0);
        // SAFETY: the caller's promise.
        unsafe {
            if base == 4 {
                let sib = self.byte();
                base = usize::from(sib & 7);
                let index = usize::from(sib >> 3 & 7) | x;
                // The stack pointer is no index: its number says that there is none.
                if index != 4 {
                    stride = value(index) << (sib >> 6);
                }
            }
            let start = match (mode, base) {
                (0, 5) if in_code => {
                    let distance = self.four();
                    (self.0 as usize).wrapping_add(distance)
                }
                (0, 5) => self.four(),
                (0, _) => value(base | b),
                (1, _) => value(base | b).wrapping_add(self.byte() as i8 as usize),
                _ => value(base | b).wrapping_add(self.four()),
            };
            Rows { start, stride }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::arch::global_asm;

    // Never executed: the assembler writes what is to be read.
    global_asm!(
        ".pushsection .text.sample, \"ax\", @progbits",
        "tile_sample:",
        "ldtilecfg [rdi]",
        "ldtilecfg [r13]",
        "ldtilecfg [rsp + 8]",
        "ldtilecfg [r12 + r9*4 - 512]",
        "ldtilecfg [rip + 100]",
        "sttilecfg [rip + tile_sample]",
        "sttilecfg [rbp - 1]",
        "tilerelease",
        "tilezero tmm7",
        "tileloadd tmm0, [rax + rcx]",
        "tileloadd tmm1, [r13 + r12*2]",
        "tileloadd tmm2, [rbp + r13*8 + 1024]",
        "tileloadd tmm3, [rsp + rbx*4 - 128]",
        "tileloadd tmm4, [r12 + rdx + 127]",
        "tileloadd tmm5, [r15 + r14*2 - 100000]",
        "tileloadd tmm6, [rsi*8 + 77]",
        "tileloadd tmm7, [rsi]",
        "tileloaddt1 tmm3, [r8 + r10]",
        "tilestored [r11 + rbp + 3072], tmm3",
        "tdpbf16ps tmm1, tmm2, tmm3",
        "tdpbssd tmm7, tmm0, tmm5",
        "tdpbsud tmm4, tmm6, tmm1",
        "tdpbusd tmm0, tmm1, tmm2",
        "tdpbuud tmm3, tmm5, tmm7",
        "vpaddd zmm1, zmm2, zmm3",
        ".popsection",
    );

    unsafe extern "C" {
        static tile_sample: u8;
    }

    #[test]
    fn what_the_assembler_writes_is_read() {
        let mut registers: Registers = [0; 23];
        let of = |number: usize| 0x1000_0000 * (number + 1) + number;
        for (number, name) in ORDER.iter().enumerate() {
            registers[*name as usize] = of(number) as i64;
        }
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
            std::array::from_fn(of);
        let rows = |start: usize, stride: usize| Rows { start, stride };
        let sample = &raw const tile_sample;
        let code = sample as usize;
        use Instruction::*;
        let expected = [
            LoadConfig(rdi),
            LoadConfig(r13),
            LoadConfig(rsp + 8),
            LoadConfig(r12 + 4 * r9 - 512),
            LoadConfig(0), // from where the next one begins
            StoreConfig(code),
            StoreConfig(rbp - 1),
            Release,
            Zero(7),
            Load(0, rows(rax, rcx)),
            Load(1, rows(r13, 2 * r12)),
            Load(2, rows(rbp + 1024, 8 * r13)),
            Load(3, rows(rsp - 128, 4 * rbx)),
            Load(4, rows(r12 + 127, rdx)),
            Load(5, rows(r15 - 100_000, 2 * r14)),
            Load(6, rows(77, 8 * rsi)),
            Load(7, rows(rsi, 0)),
            Load(3, rows(r8, r10)),
            Store(3, rows(r11 + 3072, rbp)),
            Add(Product::Bf16, 1, [2, 3]),
            Add(Product::SignedSigned, 7, [0, 5]),
            Add(Product::SignedUnsigned, 4, [6, 1]),
            Add(Product::UnsignedSigned, 0, [1, 2]),
            Add(Product::UnsignedUnsigned, 3, [5, 7]),
        ];
        let mut at = sample;
        for expected in expected {
            // SAFETY: the sample goes on.
            let (found, next) = unsafe { decode(at, &registers) }.unwrap();
            let expected = if expected == LoadConfig(0) { LoadConfig(next as usize + 100) } else { expected };
            assert_eq!(found, expected);
            at = next;
        }
        // SAFETY: the last instruction of the sample.
        assert_eq!(unsafe { decode(at, &registers) }, None);
    }

    #[test]
    fn what_the_processor_would_refuse_is_no_instruction_or_has_no_such_tile() {
        let read = |bytes: &[u8]| {
            // SAFETY: an instruction, with its operand.
            unsafe { decode(bytes.as_ptr(), &[0; 23]) }.map(|(instruction, _)| instruction)
        };
        assert_eq!(read(&[0xc4, 0xe2, 0x7b, 0x49, 0xf8]), Some(Instruction::Zero(7)));
        assert_eq!(read(&[0xc4, 0x62, 0x7b, 0x49, 0xf8]), Some(Instruction::Zero(15)));
        assert_eq!(read(&[0xc4, 0xe2, 0xfb, 0x49, 0xf8]), None, "W");
        assert_eq!(read(&[0xc4, 0xe2, 0x7f, 0x49, 0xf8]), None, "L");
        assert_eq!(read(&[0xc4, 0xe2, 0x73, 0x49, 0xf8]), None, "a third register");
        assert_eq!(read(&[0xc4, 0xe1, 0x7b, 0x49, 0xf8]), None, "another map");
        assert_eq!(read(&[0xc4, 0xe2, 0x7b, 0x4b, 0x00]), None, "rows without an index");
        assert_eq!(read(&[0x0f, 0x0b]), None, "ud2");
        let product = |register, third, other: u8| read(&[0xc4, register, third, 0x5c, 0xd0 | other]);
        assert_eq!(product(0xe2, 0x72, 3), Some(Instruction::Add(Product::Bf16, 2, [3, 1])));
        assert_eq!(product(0xc2, 0x32, 3), Some(Instruction::Add(Product::Bf16, 2, [11, 9])));
    }
}
