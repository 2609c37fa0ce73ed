// What tools/perplexity/perplexity.cpp of llama.cpp needs of its `common` library, and no more.
//
// That file is compiled as it is; the library behind it (arguments, downloads, chat, sampling: four
// minutes of compiling) is not. Flags: -m FILE -f TEXT --kl-divergence-base FILE [--kl-divergence]
// -c WINDOW -b BATCH -t THREADS --chunks N.
#include "arg.h"
#include "common.h"
#include "log.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>

struct common_log {};

common_log * common_log_main() {
    static common_log log;
    return &log;
}

int common_log_get_verbosity_thold() { return 4; }

void common_log_add(common_log *, ggml_log_level, const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fflush(stdout);
}

void common_init() {}
void common_memory_breakdown_print(const llama_context *) {}
std::string common_params_get_system_info(const common_params &) { return ""; }

bool common_params_parse(int count, char ** words, common_params & params, llama_example,
                         void (*)(int, char **)) {
    std::map<std::string, std::string> given;
    for (int i = 1; i < count; ++i) {
        const std::string name = words[i];
        if (name == "--kl-divergence") {
            params.kl_divergence = true;
        } else if (i + 1 < count) {
            given[name] = words[++i];
        }
    }
    params.model.path = given["-m"];
    params.logits_file = given["--kl-divergence-base"];
    params.n_ctx = atoi(given["-c"].c_str());
    params.n_batch = atoi(given["-b"].c_str());
    params.n_chunks = atoi(given["--chunks"].c_str());
    params.cpuparams.n_threads = atoi(given["-t"].c_str());
    std::ifstream file(given["-f"], std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    params.prompt = text.str();
    return !params.model.path.empty() && params.n_ctx > 0;
}

struct common_init_result::impl {
    llama_model * model = nullptr;
    llama_context * context = nullptr;
};

common_init_result::common_init_result(common_params & params, bool) : pimpl(new impl{}) {
    auto for_model = llama_model_default_params();
    for_model.n_gpu_layers = 0;
    pimpl->model = llama_model_load_from_file(params.model.path.c_str(), for_model);
    if (pimpl->model == nullptr) {
        return;
    }
    auto given = llama_context_default_params();
    given.n_ctx = params.n_ctx;
    given.n_seq_max = params.n_parallel;
    given.n_batch = params.n_batch;
    given.n_ubatch = std::min(params.n_batch, 512);
    given.n_threads = given.n_threads_batch = params.cpuparams.n_threads;
    pimpl->context = llama_init_from_model(pimpl->model, given);
}

common_init_result::~common_init_result() {
    if (pimpl->context != nullptr) {
        llama_free(pimpl->context);
    }
    if (pimpl->model != nullptr) {
        llama_model_free(pimpl->model);
    }
}

llama_model * common_init_result::model() { return pimpl->model; }
llama_context * common_init_result::context() { return pimpl->context; }

common_init_result_ptr common_init_from_params(common_params & params, bool) {
    return common_init_result_ptr(new common_init_result(params, false));
}

std::vector<llama_token> common_tokenize(const llama_context * context, const std::string & text,
                                         bool special, bool parse) {
    const auto * vocabulary = llama_model_get_vocab(llama_get_model(context));
    std::vector<llama_token> found(text.size() + 8);
    const int size = llama_tokenize(vocabulary, text.data(), text.size(), found.data(), found.size(),
                                    special, parse);
    found.resize(std::max(size, 0));
    return found;
}

// The batch: as in common.cpp, for text tokens of one sequence each.
common_batch::common_batch(llama_context * context) : batch(llama_batch_ext_init(context)) {}
void common_batch::clear() { tokens.clear(); }

int32_t common_batch::add(llama_token id, llama_pos pos, llama_seq_id seq_id, bool output) {
    tokens.push_back({ id, { pos, 0, 0, 0 }, seq_id, output, { nullptr, 0, 0 }, {} });
    return (int32_t) tokens.size() - 1;
}

int32_t common_batch::add(llama_token id, llama_pos pos, const std::vector<llama_seq_id> & ids,
                          bool output) {
    return add(id, pos, ids.at(0), output);
}

bool common_batch::set_output(int32_t index, bool value) {
    tokens.at(index).output = value;
    return true;
}

llama_batch_ext * common_batch::get_sub_batch(int32_t first, int32_t count) {
    llama_batch_ext * made = batch.get();
    llama_batch_ext_clear(made);
    for (int32_t i = first; i < first + count; ++i) {
        const auto & token = tokens.at(i);
        const int index = llama_batch_ext_add_token(made, token.seq_id, token.id);
        if (index < 0) {
            GGML_ABORT("no room for a token");
        }
        llama_batch_ext_set_pos(made, index, token.pos.data());
        if (token.output) {
            llama_batch_ext_set_output_logits(made, index, true);
        }
    }
    return made;
}
