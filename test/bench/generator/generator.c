/*
 * generator: an asynchronous iSCSI load generator on libiscsi.
 *
 *   generator URL KEY=VALUE...
 *     mode=read|write|mixed|fill   fill writes the whole volume once, in order
 *     bs=BYTES qd=N seconds=S warmup=S order=random|sequential seed=N
 *     span=BYTES                   stay inside the first BYTES of the volume
 *     initiator=IQN
 *
 * One connection, one thread: the generator is never more than one core, for
 * either server alike. Written data is incompressible, and no two sectors of
 * 512 bytes are alike: each I/O slot has random bytes of its own, and stamps
 * every sector anew before a write. Latency is kept in a histogram of 1/64
 * relative width, so that measuring allocates nothing. The result is one line
 * of JSON.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum mode { MODE_READ, MODE_WRITE, MODE_MIXED, MODE_FILL };

/* Histogram: 64 buckets for each power of two of nanoseconds. */
#define HIST_SUB 64
#define HIST_BITS 6
#define HIST_SIZE (64 * HIST_SUB)

struct config {
	const char *url, *initiator;
	enum mode mode;
	uint32_t bs, qd;
	double seconds, warmup;
	int random;
	uint64_t seed, span;
};

struct slot {
	struct load *load;
	uint64_t started; /* ns */
	unsigned char *data;
	int write;
};

struct load {
	struct config cfg;
	struct iscsi_context *iscsi;
	int lun;
	uint32_t block;   /* logical block, bytes */
	uint64_t count;   /* I/O-sized places in the span */
	uint64_t next;    /* next place when sequential */
	uint64_t rng, stamp;
	unsigned inflight;
	int stopping;
	uint64_t from;    /* ns: measure completions from here on */
	uint64_t ops, total, errors, reads, max; /* total: with the warm-up */
	uint64_t hist[HIST_SIZE];
};

static void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fputs("generator: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* xorshift64*: good enough to be neither compressible nor predictable. */
static uint64_t draw(uint64_t *s)
{
	*s ^= *s >> 12;
	*s ^= *s << 25;
	*s ^= *s >> 27;
	return *s * 2685821657736338717u;
}

static unsigned bucket(uint64_t ns)
{
	unsigned top;
	if (ns < HIST_SUB)
		return (unsigned)ns;
	top = 63u - (unsigned)__builtin_clzll(ns) - HIST_BITS;
	return (top + 1) * HIST_SUB + (unsigned)((ns >> top) & (HIST_SUB - 1));
}

/* The middle of a bucket, in ns. */
static double bucket_value(unsigned b)
{
	unsigned top = b / HIST_SUB;
	if (top == 0)
		return b;
	top--;
	return (double)(((uint64_t)(HIST_SUB + b % HIST_SUB)) << top) + (double)(1ull << top) / 2;
}

static double percentile(const struct load *l, double p)
{
	uint64_t want = (uint64_t)(p * (double)l->ops), seen = 0;
	unsigned i;
	for (i = 0; i < HIST_SIZE; i++) {
		seen += l->hist[i];
		if (seen > want)
			return bucket_value(i) / 1000.0;
	}
	return (double)l->max / 1000.0;
}

/* Makes the slot's data unlike that of every write before it. */
static void stamp(struct load *l, unsigned char *data)
{
	uint32_t i;
	for (i = 0; i + 8 <= l->cfg.bs; i += 512) {
		uint64_t s = ++l->stamp * 0x9e3779b97f4a7c15u;
		memcpy(data + i, &s, 8);
	}
}

static void submit(struct slot *s);

static void completed(struct iscsi_context *iscsi, int status, void *data, void *private)
{
	struct slot *s = private;
	struct load *l = s->load;
	uint64_t t = now(), took = t - s->started;
	(void)iscsi;

	l->inflight--;
	if (status != SCSI_STATUS_GOOD) {
		if (l->errors++ == 0)
			fprintf(stderr, "generator: status %d: %s\n", status, iscsi_get_error(l->iscsi));
		goto next;
	}
	l->total++;
	if (t >= l->from && !l->stopping) {
		l->ops++;
		l->reads += !s->write;
		l->hist[bucket(took)]++;
		if (took > l->max)
			l->max = took;
	}
next:
	if (data)
		scsi_free_scsi_task(data);
	if (!l->stopping)
		submit(s);
}

static void submit(struct slot *s)
{
	struct load *l = s->load;
	struct scsi_task *task;
	uint64_t place, lba;

	if (l->cfg.mode == MODE_FILL && l->next == l->count)
		return; /* this slot is done; the others still have theirs */
	if (l->cfg.random && l->cfg.mode != MODE_FILL)
		place = draw(&l->rng) % l->count;
	else
		place = l->next++ % l->count;
	lba = place * (l->cfg.bs / l->block);
	s->write = l->cfg.mode == MODE_WRITE || l->cfg.mode == MODE_FILL ||
		(l->cfg.mode == MODE_MIXED && draw(&l->rng) % 10 < 3);
	if (s->write)
		stamp(l, s->data);
	s->started = now();
	if (s->write) {
		task = iscsi_write16_task(l->iscsi, l->lun, lba, s->data, l->cfg.bs, (int)l->block, 0, 0, 0, 0, 0, completed, s);
	} else {
		/* The buffer is given, so that libiscsi allocates none per read. */
		task = iscsi_read16_task(l->iscsi, l->lun, lba, l->cfg.bs, (int)l->block, 0, 0, 0, 0, 0, completed, s);
		if (task)
			scsi_task_add_data_in_buffer(task, (int)l->cfg.bs, s->data);
	}
	if (!task)
		die("submit: %s", iscsi_get_error(l->iscsi));
	l->inflight++;
}

/* Logs in and learns the volume's size. */
static void open_volume(struct load *l)
{
	struct iscsi_url *url;
	struct scsi_task *task;
	struct scsi_readcapacity16 *rc;
	uint64_t size;

	l->iscsi = iscsi_create_context(l->cfg.initiator);
	if (!l->iscsi)
		die("no context");
	url = iscsi_parse_full_url(l->iscsi, l->cfg.url);
	if (!url)
		die("%s", iscsi_get_error(l->iscsi));
	iscsi_set_session_type(l->iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(l->iscsi, ISCSI_HEADER_DIGEST_NONE);
	iscsi_set_noautoreconnect(l->iscsi, 1);
	l->lun = url->lun;
	if (iscsi_full_connect_sync(l->iscsi, url->portal, url->lun))
		die("connect: %s", iscsi_get_error(l->iscsi));
	task = iscsi_readcapacity16_sync(l->iscsi, l->lun);
	if (!task || task->status != SCSI_STATUS_GOOD || !(rc = scsi_datain_unmarshall(task)))
		die("read capacity: %s", iscsi_get_error(l->iscsi));
	l->block = rc->block_length;
	size = (rc->returned_lba + 1) * rc->block_length;
	if (l->cfg.span && l->cfg.span < size)
		size = l->cfg.span;
	if (l->cfg.bs % l->block || size < l->cfg.bs)
		die("bs %u does not fit blocks of %u on %" PRIu64 " bytes", l->cfg.bs, l->block, size);
	l->count = size / l->cfg.bs;
	scsi_free_scsi_task(task);
	iscsi_destroy_url(url);
}

/* A slot, its data random. */
static struct slot *new_slot(struct load *l)
{
	struct slot *s = calloc(1, sizeof(*s));
	uint32_t i;

	if (!s || posix_memalign((void **)&s->data, 4096, l->cfg.bs))
		die("no memory");
	for (i = 0; i + 8 <= l->cfg.bs; i += 8) {
		uint64_t r = draw(&l->rng);
		memcpy(s->data + i, &r, 8);
	}
	s->load = l;
	return s;
}

/* Serves the connection until the time is over and nothing is under way. */
static double drive(struct load *l)
{
	uint64_t start = now(), end, last;
	unsigned i;

	l->from = start + (uint64_t)(l->cfg.warmup * 1e9);
	end = l->cfg.mode == MODE_FILL ? UINT64_MAX : l->from + (uint64_t)(l->cfg.seconds * 1e9);
	for (i = 0; i < l->cfg.qd; i++)
		submit(new_slot(l));
	last = start;
	while (l->inflight) {
		struct pollfd p = { .fd = iscsi_get_fd(l->iscsi), .events = (short)iscsi_which_events(l->iscsi) };
		int n = poll(&p, 1, 1000);
		uint64_t t = now();
		if (n < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		if (n > 0) {
			last = t;
			if (iscsi_service(l->iscsi, p.revents) < 0)
				die("service: %s", iscsi_get_error(l->iscsi));
		}
		if (t - last > 60000000000u)
			die("nothing came back for 60 s");
		if (t >= end && !l->stopping) {
			l->stopping = 1;
			end = t;
		}
	}
	if (l->cfg.mode == MODE_FILL)
		end = now();
	return (double)(end - l->from) / 1e9;
}

static void parse(struct config *c, int argc, char **argv)
{
	int i;
	*c = (struct config){ .url = argv[1], .initiator = "iqn.2026-11.io.steadfast.test:generator", .mode = MODE_READ,
		.bs = 4096, .qd = 1, .seconds = 5, .warmup = 0.5, .random = 1, .seed = 1 };
	for (i = 2; i < argc; i++) {
		char *v = strchr(argv[i], '=');
		if (!v)
			die("%s: want KEY=VALUE", argv[i]);
		*v++ = 0;
		if (!strcmp(argv[i], "mode")) {
			if (!strcmp(v, "read")) c->mode = MODE_READ;
			else if (!strcmp(v, "write")) c->mode = MODE_WRITE;
			else if (!strcmp(v, "mixed")) c->mode = MODE_MIXED;
			else if (!strcmp(v, "fill")) c->mode = MODE_FILL;
			else die("mode %s", v);
		} else if (!strcmp(argv[i], "bs")) c->bs = (uint32_t)strtoul(v, NULL, 10);
		else if (!strcmp(argv[i], "qd")) c->qd = (uint32_t)strtoul(v, NULL, 10);
		else if (!strcmp(argv[i], "seconds")) c->seconds = atof(v);
		else if (!strcmp(argv[i], "warmup")) c->warmup = atof(v);
		else if (!strcmp(argv[i], "order")) c->random = !strcmp(v, "random");
		else if (!strcmp(argv[i], "seed")) c->seed = strtoull(v, NULL, 10);
		else if (!strcmp(argv[i], "span")) c->span = strtoull(v, NULL, 10);
		else if (!strcmp(argv[i], "initiator")) c->initiator = v;
		else die("no key %s", argv[i]);
	}
	if (!c->bs || !c->qd || c->bs > 16u << 20 || c->qd > 1024)
		die("bs and qd out of range");
}

int main(int argc, char **argv)
{
	static struct load l;
	double elapsed;

	if (argc < 2) {
		fprintf(stderr, "usage: generator URL [KEY=VALUE...]; see the top of generator.c\n");
		return 2;
	}
	parse(&l.cfg, argc, argv);
	if (l.cfg.mode == MODE_FILL)
		l.cfg.warmup = 0;
	l.rng = l.cfg.seed * 0x9e3779b97f4a7c15u + 88172645463325252u;
	l.stamp = (l.rng ^ now()) << 20; /* apart from every other run's stamps */
	open_volume(&l);
	elapsed = drive(&l);
	printf("{\"ops\":%" PRIu64 ",\"total\":%" PRIu64 ",\"errors\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"seconds\":%.6f,\"iops\":%.1f,\"mb_per_s\":%.3f,"
		"\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f}\n",
		l.ops, l.total, l.errors, l.reads, elapsed, (double)l.ops / elapsed, (double)l.ops * l.cfg.bs / elapsed / 1e6,
		percentile(&l, 0.50), percentile(&l, 0.99), percentile(&l, 0.999), (double)l.max / 1000.0);
	iscsi_logout_sync(l.iscsi);
	iscsi_destroy_context(l.iscsi);
	return l.errors ? 1 : 0;
}
