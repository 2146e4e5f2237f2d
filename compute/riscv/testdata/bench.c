// Mixes of integer code for BenchmarkMix: a0 chooses one, what it computes is returned.
// Each runs for some tens of millions of instructions.
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned char u8;

static u32 table[256];
static u8 bytes[65536];
static int heap[20000];
static int ma[64][64], mb[64][64], mc[64][64];
struct node { struct node *next; u64 value; };
static struct node nodes[65536];

static u64 seed = 12345;
static u64 next(void) { seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17; return seed; }

static u64 loop(void) {
	u64 a = 1, b = 2;
	for (u64 i = 0; i < 6000000; i++) { a += b ^ i; b = (b << 1) | (a >> 63); }
	return a + b;
}

static u64 crc(void) {
	for (u32 i = 0; i < 256; i++) { u32 c = i; for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >> 1) : c >> 1; table[i] = c; }
	for (int i = 0; i < 65536; i++) bytes[i] = next();
	u32 c = ~0u;
	for (int r = 0; r < 60; r++) for (int i = 0; i < 65536; i++) c = table[(c ^ bytes[i]) & 255] ^ (c >> 8);
	return ~c;
}

static void sift(int i, int n) {
	for (;;) {
		int c = 2 * i + 1;
		if (c >= n) return;
		if (c + 1 < n && heap[c + 1] > heap[c]) c++;
		if (heap[i] >= heap[c]) return;
		int t = heap[i]; heap[i] = heap[c]; heap[c] = t;
		i = c;
	}
}

static u64 heapsort(void) {
	u64 sum = 0;
	for (int r = 0; r < 8; r++) {
		int n = 20000;
		for (int i = 0; i < n; i++) heap[i] = next();
		for (int i = n / 2 - 1; i >= 0; i--) sift(i, n);
		for (int i = n - 1; i > 0; i--) { int t = heap[0]; heap[0] = heap[i]; heap[i] = t; sift(0, i); }
		for (int i = 1; i < n; i++) sum = sum * 31 + heap[i] + (heap[i - 1] > heap[i]);
	}
	return sum;
}

static u64 matmul(void) {
	u64 sum = 0;
	for (int i = 0; i < 64; i++) for (int j = 0; j < 64; j++) { ma[i][j] = next(); mb[i][j] = next(); }
	for (int r = 0; r < 20; r++) {
		for (int i = 0; i < 64; i++) for (int j = 0; j < 64; j++) {
			int s = 0;
			for (int k = 0; k < 64; k++) s += ma[i][k] * mb[k][j];
			mc[i][j] = s;
		}
		sum += mc[r][r];
		ma[r][r]++;
	}
	return sum;
}

static u64 chase(void) {
	static u32 order[65536];
	for (u32 i = 0; i < 65536; i++) order[i] = i;
	for (u32 i = 65535; i > 0; i--) { u32 j = next() % (i + 1), t = order[i]; order[i] = order[j]; order[j] = t; }
	for (u32 i = 0; i < 65536; i++) { nodes[order[i]].next = &nodes[order[(i + 1) & 65535]]; nodes[order[i]].value = i; }
	u64 sum = 0;
	struct node *n = nodes;
	for (int i = 0; i < 6000000; i++) { sum += n->value; n = n->next; }
	return sum;
}

struct record { struct record *link; int kind; int number; char name[32]; };
static struct record one, two;
static int global, array1[50], array2[50][50];
static char letter;

__attribute__((noinline)) static int same(char a, char b) { char c = a; if (c != b) return 0; letter = c; return 1; }
__attribute__((noinline)) static int compare(const char *a, const char *b) { while (*a && *a == *b) { a++; b++; } return *a - *b; }
__attribute__((noinline)) static void copy(char *a, const char *b) { while ((*a++ = *b++)) ; }
__attribute__((noinline)) static void fill(int *a, int (*b)[50], int x, int y) {
	int at = x + 5;
	a[at] = y; a[at + 1] = a[at]; a[at + 30 > 49 ? 49 : at + 30] = at;
	for (int i = at; i <= at + 1; i++) b[at][i] = at;
	b[at][at - 1]++;
	global = 5;
}
__attribute__((noinline)) static void assign(struct record *r) {
	*r->link = *r;
	r->number = 5;
	r->link->number = r->number;
	r->link->link = r->link;
	if (r->link->kind == 0) { r->link->number = 6; r->link->kind = 1 - r->kind; } else *r = *r->link;
}

static u64 dhry(void) {
	one.link = &two; two.link = &one; one.kind = 0;
	copy(one.name, "DHRYSTONE PROGRAM, SOME STRING");
	u64 sum = 0;
	char s1[32], s2[32];
	copy(s1, "DHRYSTONE PROGRAM, 1'ST STRING");
	for (int i = 0; i < 40000; i++) {
		copy(s2, "DHRYSTONE PROGRAM, 2'ND STRING");
		int a = 2, b = 3;
		sum += compare(s1, s2);
		while (a < b) { sum += 5 * a - b; a++; }
		fill(array1, array2, a, b + i % 7);
		one.link = &two;
		assign(&one);
		for (char c = 'A'; c <= 'E'; c++) if (same(c, 'C')) sum += i;
		b = b * a; sum += b / (a + 1) + (7 * (b - a));
	}
	return sum + global + letter;
}

u64 run(u64 which) {
	switch (which) {
	case 0: return loop();
	case 1: return crc();
	case 2: return heapsort();
	case 3: return matmul();
	case 4: return chase();
	default: return dhry();
	}
}
