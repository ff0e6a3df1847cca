/* onvm_hop: what a packet's hop from NF to NF costs in OpenNetVM, and nothing else of it.
 *
 * A program of its own, on DPDK, that does for each packet the work that OpenNetVM's library does in an
 * NF whose packets go to an NF (onvm/onvm_nflib: the main loop, onvm_pkt_process_tx_batch,
 * onvm_pkt_enqueue_nf and onvm_pkt_flush_all_nfs, read there and written anew):
 *
 *   take up to 32 mbuf pointers from the NF's rte_ring (many producers, one consumer)
 *   call the handler for each by a pointer; it writes action and destination into the mbuf's second line
 *   for each: write the source, read the action, count it; look the destination service's instance up by
 *     the packet's hash (first line); see that it runs; put the pointer into its buffer of 32
 *   flush each buffer that is full, and after the burst walk all 128 possible NFs' buffers
 *   look at the ring of messages, and at the limits of time and packets
 *
 * What is left out is what does no work there either: the flow table (the action is "to NF"), the
 * manager's threads (no packet goes through them), statistics on a screen. Where a function is called
 * across files in OpenNetVM, which is built without link-time optimisation, it is kept from being
 * inlined here.
 *
 *   onvm_hop --cores 1   [--walk all|present] [--touch none|header|payload] [--packet-bytes N]
 *                        [--in-flight N] [--seconds S]
 *   onvm_hop --cores 0,1 …     two NFs that send to each other, a pinned thread each
 *
 * --touch header: the first NF reads the packet's first line and rewrites four bytes of it, the second
 * exchanges the Ethernet addresses; payload: the first NF also adds to each further byte.
 *
 * Prints one JSON object: packets that the first NF handled, in millions a second of wall time, and of
 * its thread's CPU time, which other work on the machine disturbs less.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_memory.h>
#include <rte_mempool.h>
#include <rte_ring.h>

/* OpenNetVM's limits (onvm_common.h). */
#define MAX_NFS 128
#define MAX_SERVICES 32
#define NF_RING_SLOTS 16384
#define MESSAGE_RING_SLOTS 128
#define POOL_MBUFS 32767
#define BURST 32

#define NOT_INLINED __attribute__((noinline))

/* Linux 6.1; older headers lack it. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum action { ACTION_DROP, ACTION_NEXT, ACTION_TO_NF, ACTION_OUT };
enum status { STATUS_ABSENT, STATUS_RUNNING };

/* Of each packet, in its mbuf's second line. */
struct meta {
	uint8_t action;
	uint16_t destination;
	uint16_t source;
	uint8_t hop;
	uint8_t flags;
};
#define FLAG_OURS 1

struct waiting {
	struct rte_mbuf *pkts[BURST];
	uint16_t count;
};

struct nf;
typedef int (*handler_fn)(struct rte_mbuf *pkt, struct meta *meta, struct nf *nf);

struct nf_info {
	uint16_t instance;
	uint16_t service;
	uint8_t status;
	uint16_t time_limit;
	uint32_t packet_limit;
};

struct nf {
	struct rte_ring *rx;
	struct rte_ring *messages;
	struct nf_info *info;
	uint16_t instance;
	uint16_t send_to;
	handler_fn handler;
	struct waiting *waiting; /* for each NF, the packets that go there */
	uint32_t until_display;
	uint64_t seen; /* by the handler: the figure */
	struct {
		volatile uint64_t rx, rx_drop, tx, tx_drop, to_nf, drop;
	} stats;
} __rte_cache_aligned;

static struct nf *nfs;
static uint16_t *instances_of;       /* by service: how many */
static uint16_t (*instance_at)[MAX_NFS]; /* by service and position */
static int meta_offset = -1;
static uint16_t walked = MAX_NFS;
static enum { TOUCH_NONE, TOUCH_HEADER, TOUCH_PAYLOAD } touched;
static volatile bool keep_running = true;

static inline struct meta *meta_of(struct rte_mbuf *pkt)
{
	return RTE_MBUF_DYNFIELD(pkt, meta_offset, struct meta *);
}

static inline bool is_running(const struct nf *nf)
{
	return nf->info != NULL && nf->info->status == STATUS_RUNNING;
}

static NOT_INLINED void drop(struct rte_mbuf *pkt)
{
	rte_pktmbuf_free(pkt);
}

/* --- the NF's own code ------------------------------------------------------------------------ */

#define LINE_BYTES 64

/* Reads every word of the first line, writes one field; adds to what lies behind. */
static inline void touch(struct rte_mbuf *pkt)
{
	uint8_t *frame = rte_pktmbuf_mtod(pkt, uint8_t *);
	uint32_t sum = 0, word;

	for (unsigned int at = 0; at < LINE_BYTES; at += sizeof(word)) {
		memcpy(&word, frame + at, sizeof(word));
		sum = sum * 31 + word;
	}
	memcpy(frame + 8, &sum, sizeof(sum));
	/* Read once: written through a byte pointer, it might be the length that changes, and the loop could
	 * not be made of vectors. */
	const unsigned int bytes = pkt->data_len;
	if (touched == TOUCH_PAYLOAD)
		for (unsigned int at = LINE_BYTES; at < bytes; at++)
			frame[at]++;
}

static NOT_INLINED int on_packet(struct rte_mbuf *pkt, struct meta *meta, struct nf *nf)
{
	if (unlikely(nf->until_display-- == 0))
		nf->until_display = 30 * 1000 * 1000;
	if (unlikely(!(meta->flags & FLAG_OURS))) {
		meta->action = ACTION_DROP;
		return 0;
	}
	if (touched != TOUCH_NONE)
		touch(pkt);
	meta->destination = nf->send_to;
	meta->action = ACTION_TO_NF;
	return 0;
}

/* The NF at the other end of a round. */
static NOT_INLINED int on_return(struct rte_mbuf *pkt, struct meta *meta, struct nf *nf)
{
	if (touched != TOUCH_NONE) {
		uint8_t *frame = rte_pktmbuf_mtod(pkt, uint8_t *), kept[6];

		memcpy(kept, frame, 6);
		memcpy(frame, frame + 6, 6);
		memcpy(frame + 6, kept, 6);
	}
	meta->destination = nf->send_to;
	meta->action = ACTION_TO_NF;
	return 0;
}

/* --- the library's ---------------------------------------------------------------------------- */

static NOT_INLINED uint16_t instance_for(uint16_t service, struct rte_mbuf *pkt)
{
	uint16_t count = instances_of[service];

	if (count == 0)
		return 0;
	return instance_at[service][pkt->hash.rss % count];
}

static NOT_INLINED void flush_one(struct nf *from, uint16_t to)
{
	struct waiting *waiting = &from->waiting[to];

	if (waiting->count == 0)
		return;
	struct nf *nf = &nfs[to];
	if (!is_running(nf))
		return;
	if (rte_ring_enqueue_bulk(nf->rx, (void **)waiting->pkts, waiting->count, NULL) == 0) {
		for (uint16_t i = 0; i < waiting->count; i++)
			drop(waiting->pkts[i]);
		nf->stats.rx_drop += waiting->count;
		from->stats.tx_drop += waiting->count;
	} else {
		nf->stats.rx += waiting->count;
		from->stats.tx += waiting->count;
	}
	waiting->count = 0;
}

static void enqueue_nf(struct nf *from, uint16_t service, struct rte_mbuf *pkt)
{
	uint16_t to = instance_for(service, pkt);

	if (unlikely(to == 0 || !is_running(&nfs[to]))) {
		drop(pkt);
		from->stats.tx_drop++;
		return;
	}
	struct waiting *waiting = &from->waiting[to];
	waiting->pkts[waiting->count++] = pkt;
	if (waiting->count == BURST)
		flush_one(from, to);
}

static NOT_INLINED void send_on(struct nf *nf, struct rte_mbuf **pkts, uint16_t n)
{
	for (uint16_t i = 0; i < n; i++) {
		struct meta *meta = meta_of(pkts[i]);

		meta->source = nf->instance;
		if (meta->action == ACTION_DROP) {
			nf->stats.drop++;
			drop(pkts[i]);
		} else if (meta->action == ACTION_TO_NF) {
			nf->stats.to_nf++;
			enqueue_nf(nf, meta->destination, pkts[i]);
		} else {
			drop(pkts[i]);
		}
	}
}

static NOT_INLINED void flush_all(struct nf *from)
{
	for (uint16_t to = 0; to < walked; to++)
		flush_one(from, to);
}

static inline uint16_t take(struct nf *nf, struct rte_mbuf **pkts)
{
	uint16_t n = rte_ring_dequeue_burst(nf->rx, (void **)pkts, BURST, NULL);

	for (uint16_t i = 0; i < n; i++)
		(*nf->handler)(pkts[i], meta_of(pkts[i]), nf);
	return n;
}

static void *run_nf(void *argument)
{
	struct nf *nf = argument;
	struct rte_mbuf *pkts[BURST];
	uint64_t began = rte_get_tsc_cycles();

	while (keep_running) {
		uint16_t n = take(nf, pkts);

		if (likely(n > 0))
			send_on(nf, pkts, n);
		flush_all(nf);
		if (unlikely(rte_ring_count(nf->messages) != 0))
			break;
		if (unlikely(nf->info->time_limit &&
			     (rte_get_tsc_cycles() - began) / rte_get_timer_hz() >= nf->info->time_limit))
			break;
		if (unlikely(nf->info->packet_limit && nf->stats.rx >= nf->info->packet_limit))
			break;
	}
	return NULL;
}

/* --- setting up ------------------------------------------------------------------------------- */

#define FAIL(...)                                        \
	do {                                             \
		fprintf(stderr, "onvm_hop: " __VA_ARGS__); \
		fputc('\n', stderr);                     \
		exit(1);                                 \
	} while (0)

static void *zeroed(size_t bytes)
{
	/* OpenNetVM keeps all of it in memzones, in hugepages. */
	void *at = rte_zmalloc("onvm_hop", bytes, RTE_CACHE_LINE_SIZE);

	if (at == NULL)
		FAIL("no memory");
	return at;
}

/* On huge pages, as OpenNetVM's memory is, without any that are reserved. */
static int collapse(const struct rte_memseg_list *list, void *argument)
{
	const uintptr_t huge = 2 << 20;
	uintptr_t start = RTE_ALIGN_CEIL((uintptr_t)list->base_va, huge);
	uintptr_t end = RTE_ALIGN_FLOOR((uintptr_t)list->base_va + list->len, huge);

	(void)argument;
	/* Refused by older kernels, or for a page, which costs speed only. */
	for (uintptr_t at = start; at < end; at += huge)
		(void)madvise((void *)at, huge, MADV_COLLAPSE);
	return 0;
}

static void start_eal(void)
{
	char *arguments[] = { "onvm_hop", "--no-huge", "-m",	     "256",	   "--no-pci", "--no-telemetry",
			      "--no-shconf", "--log-level", "error", "--iova-mode=va", NULL };

	if (rte_eal_init(sizeof(arguments) / sizeof(*arguments) - 1, arguments) < 0)
		FAIL("EAL does not start: %s", rte_strerror(rte_errno));
}

/* NF `at` of those numbered 1 to `count`; each sends to the next. Services are numbered alike. */
static void make_nf(uint16_t at, uint16_t count)
{
	struct nf *nf = &nfs[at];
	char name[32];

	snprintf(name, sizeof(name), "rx_%u", at);
	nf->rx = rte_ring_create(name, NF_RING_SLOTS, SOCKET_ID_ANY, RING_F_SC_DEQ);
	snprintf(name, sizeof(name), "messages_%u", at);
	nf->messages = rte_ring_create(name, MESSAGE_RING_SLOTS, SOCKET_ID_ANY, RING_F_SC_DEQ);
	if (nf->rx == NULL || nf->messages == NULL)
		FAIL("no ring: %s", rte_strerror(rte_errno));
	nf->info = zeroed(sizeof(*nf->info));
	nf->info->instance = nf->info->service = nf->instance = at;
	nf->info->status = STATUS_RUNNING;
	nf->handler = at == 1 ? on_packet : on_return;
	nf->send_to = at % count + 1;
	nf->waiting = zeroed(MAX_NFS * sizeof(*nf->waiting));
	instances_of[at] = 1;
	instance_at[at][0] = at;
}

static void make_packets(struct rte_mempool *pool, struct nf *nf, uint32_t count, uint16_t bytes)
{
	for (uint32_t i = 0; i < count; i++) {
		struct rte_mbuf *pkt = rte_pktmbuf_alloc(pool);

		if (pkt == NULL)
			FAIL("the pool has no %u packets", count);
		memset(rte_pktmbuf_append(pkt, bytes), (int)i, bytes);
		pkt->hash.rss = i;
		struct meta *meta = meta_of(pkt);
		*meta = (struct meta){ .action = ACTION_TO_NF, .destination = nf->instance, .flags = FLAG_OURS };
		if (rte_ring_enqueue(nf->rx, pkt) != 0)
			FAIL("the ring has no room for %u packets", count);
	}
}

static void pin(pthread_t thread, unsigned int core)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(core, &set);
	int error = pthread_setaffinity_np(thread, sizeof(set), &set);
	if (error != 0)
		FAIL("core %u cannot be used: %s", core, strerror(error));
}

static double now_s(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static void sleep_s(double seconds)
{
	struct timespec time = { (time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9) };

	while (nanosleep(&time, &time) != 0 && errno == EINTR)
		;
}

static uint64_t handled(struct nf *nf)
{
	return nf->stats.to_nf;
}

struct options {
	unsigned int cores[2];
	uint16_t nfs;
	uint32_t in_flight;
	uint16_t packet_bytes;
	double seconds;
};

static void usage(void)
{
	fprintf(stderr, "usage: onvm_hop --cores CORE[,CORE] [--walk all|present] "
			"[--touch none|header|payload] [--packet-bytes BYTES] [--in-flight PACKETS] [--seconds SECONDS]\n");
	exit(2);
}

static struct options parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "cores", required_argument, NULL, 'c' },     { "walk", required_argument, NULL, 'w' },
		{ "touch", required_argument, NULL, 't' },     { "in-flight", required_argument, NULL, 'n' },
		{ "seconds", required_argument, NULL, 's' },   { "packet-bytes", required_argument, NULL, 'b' },
		{ NULL, 0, NULL, 0 },
	};
	struct options options = { .nfs = 0, .in_flight = 128, .packet_bytes = 64, .seconds = 1.0 };
	bool walk_present = false;
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		if (option == 'c') {
			int read = sscanf(optarg, "%u,%u", &options.cores[0], &options.cores[1]);
			options.nfs = read < 0 ? 0 : (uint16_t)read;
		} else if (option == 'w' && (!strcmp(optarg, "all") || !strcmp(optarg, "present"))) {
			walk_present = !strcmp(optarg, "present");
		} else if (option == 't' && !strcmp(optarg, "none")) {
			touched = TOUCH_NONE;
		} else if (option == 't' && !strcmp(optarg, "header")) {
			touched = TOUCH_HEADER;
		} else if (option == 't' && !strcmp(optarg, "payload")) {
			touched = TOUCH_PAYLOAD;
		} else if (option == 'b' && atoi(optarg) >= LINE_BYTES && atoi(optarg) <= 2048) {
			options.packet_bytes = (uint16_t)atoi(optarg);
		} else if (option == 'n' && atoi(optarg) > 0 && atoi(optarg) < NF_RING_SLOTS) {
			options.in_flight = (uint32_t)atoi(optarg);
		} else if (option == 's' && atof(optarg) > 0) {
			options.seconds = atof(optarg);
		} else {
			usage();
		}
	}
	if (options.nfs == 0 || optind != argc)
		usage();
	if (walk_present)
		walked = options.nfs + 1;
	return options;
}

int main(int argc, char **argv)
{
	struct options options = parse(argc, argv);

	start_eal();
	static const struct rte_mbuf_dynfield field = {
		.name = "onvm_hop_meta", .size = sizeof(struct meta), .align = _Alignof(struct meta),
	};
	meta_offset = rte_mbuf_dynfield_register(&field);
	if (meta_offset < 0)
		FAIL("no room in the mbuf: %s", rte_strerror(rte_errno));
	struct rte_mempool *pool =
		rte_pktmbuf_pool_create("pool", POOL_MBUFS, 512, 0, RTE_MBUF_DEFAULT_BUF_SIZE, SOCKET_ID_ANY);
	if (pool == NULL)
		FAIL("no pool of packets: %s", rte_strerror(rte_errno));
	nfs = zeroed(MAX_NFS * sizeof(*nfs));
	instances_of = zeroed(MAX_SERVICES * sizeof(*instances_of));
	instance_at = zeroed(MAX_SERVICES * sizeof(*instance_at));
	for (uint16_t at = 1; at <= options.nfs; at++)
		make_nf(at, options.nfs);
	make_packets(pool, &nfs[1], options.in_flight, options.packet_bytes);
	rte_memseg_list_walk(collapse, NULL);

	pthread_t threads[2];
	for (uint16_t at = 0; at < options.nfs; at++) {
		if (pthread_create(&threads[at], NULL, run_nf, &nfs[at + 1]) != 0)
			FAIL("no thread");
		pin(threads[at], options.cores[at]);
	}
	/* Pinned, warm, every packet under way. */
	sleep_s(0.1);
	clockid_t cpu;
	if (pthread_getcpuclockid(threads[0], &cpu) != 0)
		FAIL("no CPU clock");
	double began = now_s(CLOCK_MONOTONIC), cpu_began = now_s(cpu);
	uint64_t before = handled(&nfs[1]);
	sleep_s(options.seconds);
	uint64_t after = handled(&nfs[1]);
	double cpu_took = now_s(cpu) - cpu_began, took = now_s(CLOCK_MONOTONIC) - began;
	keep_running = false;
	for (uint16_t at = 0; at < options.nfs; at++)
		pthread_join(threads[at], NULL);
	uint64_t dropped = 0;
	for (uint16_t at = 1; at <= options.nfs; at++)
		dropped += nfs[at].stats.tx_drop + nfs[at].stats.drop;
	double mpkts = (double)(after - before) / 1e6;
	printf("{\"mpps\": %.3f, \"mpps_cpu\": %.3f, \"dropped\": %lu}\n", mpkts / took, mpkts / cpu_took,
	       (unsigned long)dropped);
	/* The pool and the rings end with the process. */
	return dropped == 0 ? 0 : 1;
}
