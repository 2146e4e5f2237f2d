// The programs of compute/riscv/testdata/bench.c, each so many times, between two lines on
// the serial port: "begin NAME" and "end NAME INSTRUCTIONS RESULT". instret is exact where
// instructions are what is counted, and a time where they are not.
typedef unsigned long u64;
typedef unsigned char u8;

u64 run(u64 which);

#define BASE 0x80000000ul
#define SIZE (64ul << 20)
#define UART 0x10000000ul

static u64 root[512] __attribute__((aligned(4096)));
static u64 middle[512] __attribute__((aligned(4096)));
static u64 leaves[SIZE >> 21][512] __attribute__((aligned(4096)));

// prepare maps RAM to itself by pages of 4 KiB, as user programs have it, and devices by a
// gigapage, and returns what satp is to be.
u64 prepare(void) {
	for (u64 i = 0; i < SIZE >> 21; i++) {
		for (u64 j = 0; j < 512; j++) leaves[i][j] = (BASE + (i << 21) + (j << 12)) >> 2 | 0xcf;
		middle[i] = (u64)leaves[i] >> 2 | 1;
	}
	root[BASE >> 30] = (u64)middle >> 2 | 1;
	root[0] = 0xc7;
	return 8ul << 60 | (u64)root >> 12;
}

static void say(const char *s) {
	for (; *s; s++) {
		while (!(*(volatile u8 *)(UART + 5) & 0x20)) ;
		*(volatile u8 *)UART = *s;
	}
}

static void number(u64 n) {
	char text[21], *p = text + 20;
	*p = 0;
	do { *--p = '0' + n % 10; n /= 10; } while (n);
	say(p);
}

static u64 instret(void) { u64 v; __asm__ volatile("csrr %0, instret" : "=r"(v)); return v; }

static const struct { const char *name; u64 times; } programs[] = {
	{"loop", 8}, {"crc", 8}, {"heapsort", 10}, {"matmul", 10}, {"list", 8}, {"dhrystone", 10},
};

void mix(void) {
	for (u64 i = 0; i < sizeof programs / sizeof programs[0]; i++) {
		u64 result = 0;
		say("begin "); say(programs[i].name); say("\n");
		u64 before = instret();
		for (u64 n = 0; n < programs[i].times; n++) result += run(i);
		u64 after = instret();
		say("end "); say(programs[i].name); say(" "); number(after - before); say(" "); number(result); say("\n");
	}
}
