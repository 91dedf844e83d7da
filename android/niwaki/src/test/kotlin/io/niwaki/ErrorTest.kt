package io.niwaki

import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.runBlocking
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotNull
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import java.io.File
import kotlin.time.Duration
import kotlin.time.Duration.Companion.seconds

class ErrorTest {
    @TempDir
    lateinit var folder: File

    private inline fun <reified E : NiwakiException> fails(noinline work: suspend () -> Unit): E =
        assertThrows<E> { runBlocking { work() } }

    @Test
    fun `a missing file`() {
        fails<NiwakiException.FileNotFound> { Engine.open(File(folder, "none.niwaki")) }
        fails<NiwakiException.FileNotFound> { Engine.plan(File(folder, "none.niwaki")) }
    }

    @Test
    fun `a file that is no bundle, one that is cut off, one with a wrong bit`() {
        val bytes = demoModel.readBytes()
        val file = File(folder, "damaged.niwaki")
        file.writeText("once upon a time")
        fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        file.writeBytes(bytes.copyOf(bytes.size / 2))
        fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        bytes[bytes.size / 2] = (bytes[bytes.size / 2].toInt() xor 4).toByte()
        file.writeBytes(bytes)
        val error = fails<NiwakiException.InvalidBundle> { Engine.open(file) }
        assertTrue("hash" in error.message.orEmpty()) { "${error.message}" }
        assertNotNull(error.cause)
    }

    @Test
    fun `a bundle of a format to come`() {
        val bytes = demoModel.readBytes()
        val version = bytes.copyOfRange(8, 12).first()
        bytes[8] = (version + 1).toByte()
        val file = File(folder, "later.niwaki").apply { writeBytes(bytes) }
        fails<NiwakiException.UnsupportedBundle> { Engine.open(file) }
    }

    @Test
    fun `a model that takes more memory than it may`() {
        val error = fails<NiwakiException.NotEnoughMemory> {
            Engine.open(demoModel, OpenOptions { memoryLimitBytes = 1000 })
        }
        assertEquals(1000, error.limitBytes)
        val plan = runBlocking { Engine.plan(demoModel) }
        assertEquals(plan.anonymousBytes, error.neededBytes)
        assertEquals(plan.parts.filterNot { it.fileBacked }.sumOf { it.sizeBytes }, plan.anonymousBytes)
        fails<NiwakiException.NotEnoughMemory> {
            Engine.open(demoModel, OpenOptions { memoryLimitBytes = plan.anonymousBytes - 1 })
        }
        runBlocking { Engine.open(demoModel, OpenOptions { memoryLimitBytes = plan.anonymousBytes }).close() }
    }

    @Test
    fun `a prompt that the context has no room for`() {
        val error = fails<NiwakiException.ContextFull> {
            withEngine(oneThread.copy { contextTokens = 8 }) { it.generate("Once upon a time ".repeat(9)).collect() }
        }
        assertEquals(8, error.contextTokens)
        assertTrue(error.neededTokens > 8) { "${error.neededTokens}" }
        fails<NiwakiException.ContextFull> {
            val options = GenerateOptions { maxNewTokens = 600; contextEnd = ContextEnd.Refuse }
            withEngine { it.generate("Once", options).collect() }
        }
    }

    @Test
    fun `a context that fills up ends the text`() = runBlocking<Unit> {
        withEngine(oneThread.copy { contextTokens = 16 }) { engine ->
            var finish: Finish? = null
            engine.generate("Once", GenerateOptions { sampling = Sampling.Greedy }).collect { finish = it.finish }
            assertEquals(FinishReason.ContextFull, finish?.reason)
        }
    }

    @Test
    fun `options that make no sense`() {
        fun nonsense(word: String, build: GenerateOptions.Builder.() -> Unit) {
            val error = fails<NiwakiException.InvalidArgument> {
                withEngine { it.generate("Once", GenerateOptions(build)).collect() }
            }
            assertTrue(word in error.message.orEmpty()) { "${error.message}" }
        }
        nonsense("maxNewTokens -1") { maxNewTokens = -1 }
        nonsense("topK 0") { sampling = Sampling { topK = 0 } }
        nonsense("topK -3") { sampling = Sampling { topK = -3 } }
        for (temperature in listOf(-1f, Float.NaN, Float.POSITIVE_INFINITY)) {
            nonsense("temperature") { sampling = Sampling { this.temperature = temperature } }
        }
        nonsense("top-p") { sampling = Sampling { topP = 1.5f } }
        nonsense("min-p") { sampling = Sampling { minP = -0.1f } }
        nonsense("penalty") { sampling = Sampling { repetitionPenalty = RepetitionPenalty(0f) } }
        nonsense("lastTokens -1") {
            sampling = Sampling { repetitionPenalty = RepetitionPenalty(1.1f) { lastTokens = -1 } }
        }
    }

    @Test
    fun `ways to open that make no sense`() {
        fun nonsense(word: String, build: OpenOptions.Builder.() -> Unit) {
            for (ask in listOf<suspend () -> Any>(
                { Engine.open(demoModel, OpenOptions(build)) },
                { Engine.plan(demoModel, OpenOptions(build)) },
            )) {
                val error = fails<NiwakiException.InvalidArgument> { ask() }
                assertTrue(word in error.message.orEmpty()) { "${error.message}" }
            }
        }
        nonsense("threads 0") { threads = 0 }
        nonsense("threads -1") { threads = -1 }
        nonsense("256") { threads = 100_000 }
        nonsense("256") { threads = Int.MAX_VALUE }
        nonsense("memoryLimitBytes -1") { memoryLimitBytes = -1 }
        nonsense("contextTokens 0") { contextTokens = 0 }
        nonsense("contextTokens -4") { contextTokens = -4 }
        fails<NiwakiException.InvalidArgument> { Engine.open(fd = 0, offset = -1) }
        fails<NiwakiException.InvalidArgument> { Engine.open(fd = 0, length = -1) }
        fails<NiwakiException> { Engine.open(fd = Int.MIN_VALUE, offset = Long.MAX_VALUE, length = Long.MAX_VALUE) }
    }

    @Test
    fun `routers and endpoints that make no sense`() {
        fun nonsense(word: String, policy: RoutingPolicy = RoutingPolicy(), build: Endpoint.Builder.() -> Unit = {}) {
            val error = fails<NiwakiException.InvalidArgument> {
                Router.create(policy, endpoint = Endpoint("https://api.example.com", "large", build))
            }
            assertTrue(word in error.message.orEmpty()) { "${error.message}" }
        }
        nonsense("maxLocalPromptTokens -1", RoutingPolicy { maxLocalPromptTokens = -1 })
        nonsense("maxFirstToken", RoutingPolicy { maxFirstToken = -(1.seconds) })
        nonsense("connect") { timeouts = EndpointTimeouts { connect = -(1.seconds) } }
        nonsense("total") { timeouts = EndpointTimeouts { total = -Duration.INFINITE } }
        nonsense("maxRetries -1") { retry = EndpointRetry { maxRetries = -1 } }
        nonsense("backoff") { retry = EndpointRetry { backoff = -(1.seconds) } }
        runBlocking { Router.create() }.use { router ->
            assertThrows<NiwakiException.InvalidArgument> { router.predictFirstToken(-1) }
            router.close()
            assertThrows<NiwakiException.Closed> { router.predictFirstToken(1) }
        }
    }

    @Test
    fun `half an emoji is text like any other that is not`() = runBlocking<Unit> {
        val emoji = "\uD83D\uDE00"
        for ((text, read) in listOf(
            "a\uD83D" to "a\uFFFD",
            "\uDE00b" to "\uFFFDb",
            "\uDE00\uD83D" to "\uFFFD\uFFFD",
            "\uD83D$emoji\uDE00" to "\uFFFD$emoji\uFFFD",
            emoji to emoji,
            "" to "",
        )) {
            assertEquals(read, text.wellFormed())
        }

        val short = GenerateOptions { maxNewTokens = 3; stopStrings = listOf("\uD83D"); sampling = Sampling.Greedy }
        withEngine { engine ->
            assertEquals(engine.generate("a\uFFFD", short).text(), engine.generate("a\uD83D", short).text())
        }
        Engine.open(File(System.getProperty("niwaki.chatModel")), oneThread).use { engine ->
            engine.chat(listOf(Message.system("\uDE00"))).use { chat ->
                chat.reply("cut \uD83D", short).collect()
                assertEquals(listOf("\uFFFD", "cut \uFFFD"), chat.messages().take(2).map { it.content })
            }
        }
        fails<NiwakiException.FileNotFound> { Engine.open(File(folder, "\uD83D")) }
        fails<NiwakiException.InvalidArgument> { Router.create(endpoint = Endpoint("https://\uD83D", "large")) }
    }

    /** In a process of its own: this one has the library. */
    @Test
    fun `a missing native library`() {
        val libraries = mapOf(
            "missing" to File(folder, "none"),
            "no library" to File(folder, "broken").apply {
                mkdir()
                File(this, "libniwaki_bindings.so").writeText("once upon a time")
            },
        )
        for ((what, libraryFolder) in libraries) {
            val process = ProcessBuilder(
                File(System.getProperty("java.home"), "bin/java").path,
                "-Djna.library.path=$libraryFolder", "-Djna.noclasspath=true",
                "-cp", System.getProperty("java.class.path"),
                "io.niwaki.WithoutLibraryKt", demoModel.path,
            ).redirectErrorStream(true).start()
            val said = process.inputStream.bufferedReader().readText()
            assertEquals(0, process.waitFor()) { "$what: $said" }
            assertEquals(List(WAYS_IN) { "LibraryNotLoaded" }, said.trim().lines()) { what }
        }
    }

    @Test
    fun `two flows of one session at once`() = runBlocking<Unit> {
        withEngine { engine ->
            engine.session().use { session ->
                session.generate("Once", GenerateOptions { maxNewTokens = 50 }).first {
                    fails<NiwakiException.Busy> { session.generate("Once").collect() }
                    fails<NiwakiException.Busy> { session.usedTokens() }
                    true
                }
                session.generate("Once", GenerateOptions { maxNewTokens = 2 }).collect()
            }
        }
    }

    @Test
    fun `a file descriptor that is none`() {
        fails<NiwakiException.InvalidArgument> { Engine.open(fd = -1) }
        fails<NiwakiException.FileUnreadable> { Engine.open(fd = 9999) }
    }
}
