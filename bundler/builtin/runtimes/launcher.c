/* Starts the Python of a bundle, or the station, on a machine of which nothing is assumed.
 *
 * Built statically for each bundle and placed twice:
 *
 *   runtime/<platform>/python/bin/python3   runs the interpreter beside it
 *   runtime/<platform>/station              runs app/main.py of the bundle with that interpreter
 *
 * The interpreter and all its libraries come from the machine the bundle was built on, with that
 * machine's C library. It must be loaded by the very loader which belongs to it, named by where the
 * bundle lies now; an ELF file can only name its loader by an absolute path, so this program does.
 * Neither a shell, nor /proc, nor any library of the machine is needed.
 *
 * The interpreter always runs isolated (-I), without writing .pyc files (-B: the stick may be
 * read-only) and in UTF-8 mode (the machine may have no locales): nothing of the machine's own
 * Python or of its environment variables gets in.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

#ifndef LOADER
#error "give -DLOADER=\"name of the loader in python/glibc\""
#endif
#ifndef PROGRAM
#error "give -DPROGRAM=\"name of the interpreter in python/libexec\""
#endif

static int fail(const char *what, const char *path)
{
    fprintf(stderr, "error: %s: %s: %s\n", path, what, strerror(errno));
    if (errno == EACCES)
        fprintf(stderr, "hint: the folder is mounted without the right to run programs, or the "
                        "copy lost it: copy the whole folder to a disk and start it there\n");
    return 127;
}

/* Joins two strings; a bundle is never handled with half a path, so no memory ends the program. */
static char *join(const char *left, const char *right)
{
    char *joined = malloc(strlen(left) + strlen(right) + 1);
    if (joined == NULL) {
        fputs("error: no memory left\n", stderr);
        exit(127);
    }
    strcpy(joined, left);
    strcat(joined, right);
    return joined;
}

/* Where this very file lies, links resolved. AT_EXECFN serves where /proc is not mounted. */
static char *own_path(void)
{
    static char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length > 0) {
        path[length] = '\0';
        return path;
    }
    const char *given = (const char *)getauxval(AT_EXECFN);
    return given != NULL && realpath(given, path) != NULL ? path : NULL;
}

/* Cuts the last part off a path and returns it. */
static char *cut(char *path)
{
    char *slash = strrchr(path, '/');
    *slash = '\0';
    return slash + 1;
}

int main(int count, char **words)
{
    char *folder = own_path();
    if (folder == NULL)
        return fail("cannot find out where it lies", count > 0 ? words[0] : "launcher");
    const char *name = cut(folder);
    int station = strcmp(name, "station") == 0;
    char *python;
    if (station)
        python = join(folder, "/python");
    else {
        cut(folder);
        python = folder;
    }
    if (strpbrk(python, ":;") != NULL) {
        fprintf(stderr, "error: %s: the loader takes ':' and ';' in a path for separators\n"
                        "hint: rename the folder and start again\n", python);
        return 127;
    }
    char *loader = join(python, "/glibc/" LOADER);
    char *libraries = join(join(python, "/glibc:"), join(python, "/lib"));
    char *self = join(python, "/bin/python3");

    /* Libraries of the machine, made for its own C library, must not get in. */
    unsetenv("LD_PRELOAD");
    unsetenv("LD_AUDIT");
    unsetenv("LD_LIBRARY_PATH");

    char **arguments = calloc((size_t)count + 16, sizeof *arguments);
    if (arguments == NULL)
        return fail("no memory left", loader);
    int n = 0;
    arguments[n++] = loader;
    arguments[n++] = "--inhibit-cache";
    arguments[n++] = "--library-path";
    arguments[n++] = libraries;
    arguments[n++] = "--argv0";
    arguments[n++] = self;
    arguments[n++] = join(python, "/libexec/" PROGRAM);
    arguments[n++] = "-I";
    arguments[n++] = "-B";
    arguments[n++] = "-X";
    arguments[n++] = "utf8";
    if (station) {
        cut(folder);
        cut(folder);
        arguments[n++] = join(folder, "/app/main.py");
    }
    for (int i = 1; i < count; i++)
        arguments[n++] = words[i];
    execv(loader, arguments);
    return fail("cannot be started", loader);
}
