#!/bin/sh
# Compiles the Kotlin library and the sample as far as that goes without Android's own tools, and runs the library's
# tests on this machine's JVM with the native library of this machine. Needs JDK 17, Maven and Rust.
# NIWAKI_LIBRARY_FOLDER names another folder than cargo's release folder to find the native library in.
set -eu
cd "$(dirname "$0")/.."
target=$(bindings/target-folder.sh)
out=$target/android
mkdir -p "$out"

jars=$out/jars
sums=$PWD/android/jvm/sha256sums
if ! (cd "$jars" 2>/dev/null && sha256sum --check --quiet --strict "$sums" 2>/dev/null); then
  echo "fetching compiler and libraries"
  rm -rf "$jars"
  mvn --batch-mode --no-transfer-progress --quiet -file android/jvm/pom.xml -Dmaven.repo.local="$out/maven" \
    dependency:copy-dependencies -DoutputDirectory="$jars"
  (cd "$jars" && sha256sum --check --quiet --strict "$sums")
fi

# jars_of PREFIX...: a class path of the jars whose names begin so.
jars_of() {
  path=
  for prefix in "$@"; do
    for jar in "$jars/$prefix"*.jar; do path=$path:$jar; done
  done
  printf '%s' "${path#:}"
}
compiler=$(jars_of kotlin-compiler kotlin-stdlib-2 kotlin-script kotlin-reflect kotlin-daemon annotations kotlinx-coroutines-core-jvm)
library=$(jars_of kotlin-stdlib-2 kotlinx-coroutines-core-jvm jna)
android=$(jars_of android-all)
compose=$(jars_of animation annotation- annotation-jvm collection foundation lifecycle material runtime ui-)
testing=$(jars_of junit-platform okhttp okio)

# compile NAME CLASSPATH ARGUMENT...: classes to $out/NAME.
compile() {
  name=$1 classpath=$2
  shift 2
  rm -rf "${out:?}/$name"
  java -Xmx1g -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$compiler" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler \
    -no-stdlib -no-reflect -jvm-target 17 -Werror -classpath "$classpath" -d "$out/$name" "$@"
}

echo "generating bindings"
rm -rf "$out/generated"
android/generate-bindings.sh "$out/generated"

echo "compiling the library"
compile niwaki "$library:$android" -module-name niwaki -Xexplicit-api=strict \
  "$out/generated" android/niwaki/src/main/kotlin

echo "compiling the sample"
compile sample "$out/niwaki:$library:$android:$compose" -Xplugin="$(jars_of kotlin-compose-compiler)" \
  android/jvm/stubs android/sample/src/main/kotlin

echo "compiling the tests and the Kotlin in README.md"
[ "$(grep -c '^```kotlin$' README.md)" -eq 1 ] || { echo "README.md should have one block of Kotlin" >&2; exit 1; }
{ echo "package io.niwaki.readme"; sed -n '/^```kotlin$/,/^```$/p' README.md | sed '/^```/d'; } >"$out/Readme.kt"
compile tests "$out/niwaki:$library:$android:$testing" -Xfriend-paths="$out/niwaki" \
  "$out/Readme.kt" android/niwaki/src/test/kotlin android/jvm/tests

echo "building the test models"
bindings/build-test-models.sh "$out"

# A heap that is resident from the start: what grows is native. JUnit's last lines count the tests.
colors=
[ -t 1 ] || colors=--disable-ansi-colors
java -Xms128m -Xmx128m -XX:+AlwaysPreTouch -Djna.library.path="${NIWAKI_LIBRARY_FOLDER:-$target/release}" \
  -Dniwaki.model="$out/demo.niwaki" -Dniwaki.chatModel="$out/chat.niwaki" \
  -cp "$out/tests:$out/niwaki:$library:$testing" org.junit.platform.console.ConsoleLauncher \
  execute --scan-classpath "$out/tests" --disable-banner --details=tree $colors
