/* What the accelerator probe boots when no kernel is at hand: one boot sector that the machine's firmware loads, and that
 * goes the way of every kernel: real mode, protected mode, page tables, long mode. A machine on which ordinary
 * kernels hang does not get to its end. It then tells by the value it writes to QEMU's isa-debug-exit device what the
 * processor offers to a hypervisor: 0x40, +1 for VMX, +2 for SVM.
 *
 * as --64 payload.S -o payload.o && ld -m elf_x86_64 -Ttext 0x7c00 --oformat binary payload.o -o payload.bin
 */
    .code16
    .globl _start
_start:
    cli
    cld
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    lgdtl gdt_pointer
    movl %cr0, %eax
    orl $1, %eax                /* protected mode */
    movl %eax, %cr0
    ljmp $0x08, $protected

    .code32
protected:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl $0x1000, %edi          /* three empty tables from 0x1000 */
    xorl %eax, %eax
    movl $0xc00, %ecx
    rep stosl
    movl $0x2003, 0x1000        /* level 4 -> level 3, present, writable */
    movl $0x3003, 0x2000        /* level 3 -> level 2 */
    movl $0x83, 0x3000          /* the first 2 MiB, mapped to themselves as one large page */
    movl %cr4, %eax
    orl $0x20, %eax             /* physical address extension */
    movl %eax, %cr4
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx      /* EFER */
    rdmsr
    orl $0x100, %eax            /* long mode enable */
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax       /* paging: long mode begins */
    movl %eax, %cr0
    ljmp $0x18, $long

    .code64
long:
    movl $1, %eax
    cpuid
    shrl $5, %ecx               /* leaf 1, ECX bit 5: VMX */
    andl $1, %ecx
    movl %ecx, %esi
    movl $0x80000001, %eax
    cpuid
    shrl $1, %ecx               /* leaf 0x80000001, ECX bit 2: SVM */
    andl $2, %ecx
    leal 0x40(%rsi, %rcx), %eax
    movw $0xf4, %dx
    outb %al, %dx
halt:
    hlt
    jmp halt

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9a000000ffff    /* 0x08: 32-bit code */
    .quad 0x00cf92000000ffff    /* 0x10: data */
    .quad 0x00af9a000000ffff    /* 0x18: 64-bit code */
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    .org 510
    .word 0xaa55
