/* The first program of a kernel that is booted to see whether it comes up: says so on the console, and restarts the machine,
 * which ends QEMU. A whole ELF file in one segment, so that nothing but an assembler has to make it.
 *
 * as --64 init.S -o init.o && ld -m elf_x86_64 -Ttext 0x400000 --oformat binary init.o -o init
 */
    .globl _start
elf:
    .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0   /* 64 bits, little endian */
    .quad 0
    .word 2, 62                 /* an executable for x86-64 */
    .long 1
    .quad _start
    .quad program - elf
    .quad 0
    .long 0
    .word 64, 56, 1, 0, 0, 0
program:
    .long 1, 5                  /* loaded, readable and executable */
    .quad 0
    .quad elf
    .quad elf
    .quad end - elf
    .quad end - elf
    .quad 0x1000
_start:
    movl $1, %eax               /* write(1, text, ...) */
    movl $1, %edi
    leaq text(%rip), %rsi
    movl $end - text, %edx
    syscall
    movl $169, %eax             /* reboot(LINUX_REBOOT_CMD_RESTART) */
    movl $0xfee1dead, %edi
    movl $0x28121969, %esi
    movl $0x01234567, %edx
    syscall
stay:
    pause
    jmp stay
text:
    .ascii "bench-init: a program runs\n"
end:
