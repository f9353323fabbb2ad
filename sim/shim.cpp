// The C++ side of the Verilator engine: clock, byte stream, counters, write log, memories.
//
// Built together with what Verilator makes of the machine; ports.h and memories.h are written by
// sim/verilator.py from the port list and the memory map of the machine. Plain C functions, loaded
// with ctypes. Every loop is bounded by a number of cycles that the caller gives.
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vtop.h"
#include "Vtop___024root.h"
#include "verilated.h"
#include "ports.h"
#if defined(PORT_EDGE)
void PORT_EDGE(Vtop___024root*);
#endif
#if defined(TRACE_FST) || defined(TRACE_VCD)
#define WAVES
#endif
#if defined(TRACE_FST)
#include "verilated_fst_c.h"
using Waves = VerilatedFstC;
#elif defined(TRACE_VCD)
#include "verilated_vcd_c.h"
using Waves = VerilatedVcdC;
#endif

namespace {

// One vector written to MEM, without padding; sim.engine.write_log_type describes the same bytes.
// `cycle` counts from machine_count; the step is found later.
struct Write {
    uint32_t step, cycle;
    uint16_t bank, halves;
    uint32_t address;
    int16_t lanes[PORT_LANES];
};

// One vector that the sampler took from stream VXM, the low 16 bits of every lane.
struct Logits {
    uint32_t cycle;
    int16_t lanes[PORT_LANES];
};

struct Memory {
    const char* name;
    void* data;
    uint64_t stride, depth;
};

template <typename T>
Memory memory(const char* name, T& array) {
    return {name, &array[0], sizeof(array[0]), sizeof(array) / sizeof(array[0])};
}

// What the machine's logic may see of the outside.
struct Inputs {
    uint8_t reset, rx_valid, rx_payload, tx_ready;
    bool operator==(const Inputs&) const = default;
};

struct Machine {
    VerilatedContext context;
    std::unique_ptr<Vtop> top;
    std::vector<Memory> memories;
    std::vector<uint8_t> received;
    std::vector<uint64_t> barriers;
    std::vector<Write> writes;
    std::vector<Logits> logits;
    uint64_t sampling = 0;  // bit i: the sampler issued i cycles ago
    uint64_t cycle = 0, since = 0;
    bool tracing = false;
    Inputs settled{2, 0, 0, 0};  // what no input is: none are settled
#if defined(WAVES)
    Waves waves;
#endif

    explicit Machine(int64_t seed) {
        // A negative seed starts every register and memory at 0 where the build allows a choice.
        context.randReset(seed < 0 ? 0 : 2);
        if (seed >= 0) context.randSeed(static_cast<int>(seed) + 1);
#if defined(WAVES)
        context.traceEverOn(true);
#endif
        top = std::make_unique<Vtop>(&context, "metronome");
        auto* root = top->rootp;
        (void)root;
#include "memories.h"
    }

    // One clock edge, with the inputs as they are; the outputs then show the cycle that begins.
    // No output of the machine depends on an input of the same cycle, so that nothing has to be
    // settled before. Where the names that Verilator gives are known, the falling edge, which
    // does nothing, is not simulated, and while the inputs stay as they are, neither is what
    // depends on them alone: the clock edge itself is called.
    void edge() {
#if defined(PORT_EDGE) && !defined(WAVES)
        auto& root = *top->rootp;
        ++cycle;
        const Inputs now{top->rst, top->PORT_RX_VALID, top->PORT_RX_PAYLOAD, top->PORT_TX_READY};
        if (now == settled) {
            root.PORT_EDGE_FLAG[0] = 1;
            PORT_EDGE(&root);
            return;
        }
        settled = now;
        root.PORT_CLOCK_BEFORE = 0;
        top->clk = 1;
        top->eval();
#else
        top->clk = 0;
        top->eval();
#if defined(WAVES)
        if (waves.isOpen()) waves.dump(10 * cycle + 5);
#endif
        ++cycle;
        top->clk = 1;
        top->eval();
#if defined(WAVES)
        if (waves.isOpen()) waves.dump(10 * cycle);
#endif
#endif
    }

    void log_writes() {
        const auto& t = *top;
#define LOG(BANK)                                                                         \
        if (PORT_WRITE(t, BANK, valid)) {                                                 \
            Write w{0, static_cast<uint32_t>(cycle - since),                              \
                    BANK, static_cast<uint16_t>(PORT_WRITE(t, BANK, halves)),             \
                    static_cast<uint32_t>(PORT_WRITE(t, BANK, address)), {}};             \
            std::memcpy(w.lanes, &PORT_WRITE(t, BANK, data), sizeof w.lanes);             \
            writes.push_back(w);                                                          \
        }
        PORT_EACH_BANK(LOG)
#undef LOG
    }

    void log_logits() {
        const auto& t = *top;
        sampling = sampling << 1 | (t.PORT_ISSUE >> PORT_SAMPLE_QUEUE & 1);
        if (!(sampling >> PORT_SAMPLE_SKEW & 1)) return;
        int32_t wide[PORT_LANES];
        std::memcpy(wide, &t.PORT_VXM_DATA, sizeof wide);
        Logits taken{static_cast<uint32_t>(cycle - since), {}};
        for (int lane = 0; lane < PORT_LANES; ++lane)
            taken.lanes[lane] = static_cast<int16_t>(wide[lane]);
        logits.push_back(taken);
    }

    void observe() {
        if (top->PORT_BARRIER) barriers.push_back(cycle - since);
        if (tracing) {
            log_writes();
            log_logits();
        }
        if (top->PORT_TX_VALID) received.push_back(top->PORT_TX_PAYLOAD);
    }

    void cycle_once() {
        observe();
        edge();
    }
};

}  // namespace

extern "C" {

Machine* machine_new(int64_t seed) {
    auto* machine = new Machine(seed);
    auto& top = *machine->top;
    top.PORT_RX_VALID = 0;
    top.PORT_TX_READY = 1;
    top.rst = 1;
    for (int i = 0; i < 4; ++i) machine->edge();
    top.rst = 0;
    return machine;
}

void machine_free(Machine* machine) {
#if defined(WAVES)
    machine->waves.close();
#endif
    machine->top->final();
    delete machine;
}

// Clock until `size` bytes are taken and `wanted` bytes have come since the last machine_take, at
// most `limit` cycles. Returns the number of bytes taken.
uint64_t machine_advance(Machine* machine, const uint8_t* data, uint64_t size, uint64_t wanted,
                         uint64_t limit) {
    auto& top = *machine->top;
    const uint64_t end = machine->cycle + limit;
    uint64_t taken = 0;
    while (taken < size && machine->cycle < end) {
        top.PORT_RX_VALID = 1;
        top.PORT_RX_PAYLOAD = data[taken];
        machine->observe();
        if (top.PORT_RX_READY) ++taken;
        machine->edge();
    }
    top.PORT_RX_VALID = 0;
    while (machine->received.size() < wanted && machine->cycle < end) machine->cycle_once();
    return taken;
}

// Clock a fixed number of cycles.
void machine_clock(Machine* machine, uint64_t cycles) {
    for (uint64_t i = 0; i < cycles; ++i) machine->cycle_once();
}

// Hand over received bytes; returns how many there were. `out` may be null to ask only.
uint64_t machine_take(Machine* machine, uint8_t* out, uint64_t size) {
    const uint64_t count = machine->received.size();
    if (out == nullptr || size < count) return count;
    std::memcpy(out, machine->received.data(), count);
    machine->received.clear();
    return count;
}

uint64_t machine_cycle(Machine* machine) { return machine->cycle; }

void machine_count(Machine* machine, int tracing) {
    machine->barriers.clear();
    machine->writes.clear();
    machine->logits.clear();
    machine->sampling = 0;
    machine->since = machine->cycle;
    machine->tracing = tracing != 0;
}

uint64_t machine_barriers(Machine* machine, const uint64_t** out) {
    *out = machine->barriers.data();
    return machine->barriers.size();
}

uint64_t machine_writes(Machine* machine, const void** out, uint64_t* size) {
    *out = machine->writes.data();
    *size = sizeof(Write);
    return machine->writes.size();
}

uint64_t machine_logits(Machine* machine, const void** out, uint64_t* size) {
    *out = machine->logits.data();
    *size = sizeof(Logits);
    return machine->logits.size();
}

uint64_t machine_memory_count(Machine* machine) { return machine->memories.size(); }

const char* machine_memory(Machine* machine, uint64_t index, void** data, uint64_t* stride,
                           uint64_t* depth) {
    const Memory& memory = machine->memories[index];
    *data = memory.data;
    *stride = memory.stride;
    *depth = memory.depth;
    return memory.name;
}

// Write waves to a file from now on. Returns 0, or 1 where the build has no waves.
int machine_waves(Machine* machine, const char* path) {
#if defined(WAVES)
    machine->top->trace(&machine->waves, 99);
    machine->waves.open(path);
    return 0;
#else
    (void)machine;
    (void)path;
    return 1;
#endif
}

}  // extern "C"
