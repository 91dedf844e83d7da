package io.niwaki

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import io.niwaki.ffi.Backend as NativeBackend
import io.niwaki.ffi.ContextEnd as NativeContextEnd
import io.niwaki.ffi.EndpointFailure as NativeFailure
import io.niwaki.ffi.FinishReason as NativeFinishReason
import io.niwaki.ffi.KvElement as NativeKvElement
import io.niwaki.ffi.LogLevel as NativeLogLevel
import io.niwaki.ffi.Role as NativeRole
import io.niwaki.ffi.RoutingMode as NativeMode
import io.niwaki.ffi.RoutingRefusal as NativeRefusal

/** What the native side and the library call by the same name is the same. */
class MappingTest {
    private fun <N, F> same(natives: Iterable<N>, face: (N) -> F) {
        for (native in natives) {
            assertEquals("$native".replace("_", "").lowercase(), "${face(native)}".lowercase())
        }
    }

    @Test
    fun `what comes from the native side keeps its name`() {
        same(NativeBackend.entries) { it.toBackend() }
        same(NativeFailure.entries) { it.toFailure() }
        same(NativeFinishReason.entries - NativeFinishReason.CANCELLED - NativeFinishReason.FAILED) { it.toFinishReason() }
        same(NativeLogLevel.entries) { it.toLogLevel() }
        same(NativeMode.entries) { it.toRoutingMode() }
        same(NativeRefusal.entries) { it.toRefusal() }
        same(NativeRole.entries) { it.toRole() }
    }

    @Test
    fun `what goes to the native side keeps its name`() {
        same(NativeContextEnd.entries) { native -> ContextEnd.entries.single { it.toNative() == native } }
        same(NativeKvElement.entries) { native -> KvElement.entries.single { it.toNative() == native } }
        same(NativeLogLevel.entries) { native -> LogLevel.entries.single { it.toNative() == native } }
        same(NativeMode.entries) { native -> RoutingMode.entries.single { it.toNative() == native } }
        same(NativeRole.entries) { native -> Role.entries.single { it.toNative() == native } }
    }
}
